// Convolution, forward.
//
// What       y[n,k,p,q] = bias[k] + sum over c, r, s of weight[k,c,r,s]
//            x[n,c,p*stride-pad+r,q*stride-pad+s], then ReLU where asked; zero outside the image,
//            grouped. An implicit GEMM: GEMM-M = filters of a group, GEMM-N = (block, p, q, lane),
//            reduction over (c, r, s).
// Tensors    x [N/L][C][H][W][L], weight [g][C/g][R][S][K/g], bias [K], y [N/L][K][P][Q][L];
//            float32 throughout. Order of each sum, by the number of channels of a group: a
//            multiple of 8 goes tap by tap, channels innermost (ByTap); any other number goes
//            through (c, r, s) in memory order (Flat; the first layer's 3 channels would leave 5 of
//            8 reduction rows empty tap by tap).
// Work       one block per output tile: blockIdx = (pixels, filters, group). Variants from
//            128 x 128 down to 16 x 256, by the number of filters (best_rows). A tile skips taps
//            that fall outside the image for all of its pixels (ByTap): up to 10 % of a 3x3 layer at
//            13x13, about half of it where a tile is two pixels of 64 lanes.
// Shared     two stages of both operands, 17 to 21 KiB (tile/gemm_tile.cuh).
// Barriers   one per 8 reduction rows (tile/gemm_tile.cuh).
// Needs      lanes a multiple of 8, N a multiple of lanes, groups divide C and K, one group of one
//            image block below 2^31 values, 16-byte aligned tensors. K/g not a multiple of 4 reads
//            weights by scalars.
// Cost       2 N K P Q C/g R S FLOP. A 128 x 128 tile reads 8 KiB from L2 or L1 per 131072
//            multiply-adds, 8 bytes per clock and SM at 128 multiply-adds per clock: bound by FFMA
//            issue (see tile/gemm_tile.cuh).
#include "conv_forward.hpp"

#include "arch/arch.cuh"
#include "tile/conv_problem.cuh"
#include "tile/epilogue.cuh"
#include "tile/loaders.cuh"
#include "tile/variants.cuh"

namespace convnet {
namespace {

// Where a tile lies, and the parts of both reduction orders that do not depend on the order.
template <class T>
struct Operands {
  const ConvProblem& problem;
  const float* x;
  const float* weight;
  using A = RowSlots<T::kM, T::kThreads>;
  using B = RowSlots<T::kN, T::kThreads>;
  A a;
  B b;
  int64_t x_base;       // of this thread's lanes, channel 0 of the group, pixel (0, 0)
  int64_t weight_base;  // of this thread's filters in reduction row 0
  int filters;          // how many of this thread's 4 filters exist (also 0, or more than 4)
  int h, w;             // input pixel under tap (0, 0)

  __device__ __forceinline__ Operands(const ConvProblem& problem,
                                      const float* x,
                                      const float* weight,
                                      int first_filter,
                                      int64_t first_column)
      : problem(problem), x(x), weight(weight) {
    const int group = blockIdx.z;
    const int filter = first_filter + A::column();
    filters = A::kCount > 1 || A::used(0) ? problem.K - filter : 0;
    weight_base = int64_t{group} * problem.C * problem.R * problem.S * problem.K + filter;
    const int64_t column = first_column + B::column();
    const Pixel pixel = pixel_of(column, problem.P, problem.Q, problem.lanes);
    x_base =
        pixel.block * problem.x_block + int64_t{group} * problem.C * problem.x_channel + pixel.lane;
    h = column < problem.columns ? pixel.row * problem.stride - problem.pad_top : kOutside;
    w = pixel.column * problem.stride - problem.pad_left;
  }

  __device__ __forceinline__ void store(Stage<T>& stage) const {
    a.store(stage.a);
    b.store(stage.b);
  }
};

// Reduction order (r, s, c): all channels of a tap, then the next tap. C is a multiple of kStep.
template <class T>
struct ByTap : Operands<T> {
  using typename Operands<T>::A;
  using typename Operands<T>::B;
  int steps;
  int taps_in_row;  // taps of a filter row that meet the image for at least one pixel of the tile
  int taps_left, channels_left;  // of this filter row, of this tap
  int64_t x_offset, weight_offset;

  __device__ __forceinline__ ByTap(const ConvProblem& p,
                                   const float* x,
                                   const float* weight,
                                   int first_filter,
                                   int64_t first_column)
      : Operands<T>(p, x, weight, first_filter, first_column) {
    const int64_t end = min(first_column + T::kN, p.columns);
    const Span span = span_of(first_column, end - 1, p.P, p.Q, p.lanes);
    const int r_begin = max(0, p.pad_top - span.row_max * p.stride);
    const int r_end = min(p.R, p.H + p.pad_top - span.row_min * p.stride);
    const int s_begin = max(0, p.pad_left - span.column_max * p.stride);
    const int s_end = min(p.S, p.W + p.pad_left - span.column_min * p.stride);
    steps = max(0, r_end - r_begin) * max(0, s_end - s_begin) * (p.C / kStep);
    taps_in_row = taps_left = s_end - s_begin;
    channels_left = p.C;
    this->h += r_begin;
    this->w += s_begin;
    x_offset = this->x_base + (int64_t{this->h} * p.W + this->w) * p.lanes +
               int64_t{B::row(0)} * p.x_channel;
    weight_offset =
        this->weight_base + ((int64_t{A::row(0)} * p.R + r_begin) * p.S + s_begin) * p.K;
  }

  __device__ __forceinline__ void next_tap() {
    const ConvProblem& p = this->problem;
    channels_left = p.C;
    x_offset += p.lanes - p.C * p.x_channel;
    weight_offset += p.K - p.C * p.R * p.S * p.K;
    ++this->w;
    if (--taps_left > 0) return;
    taps_left = taps_in_row;
    this->w -= taps_in_row;
    ++this->h;
    x_offset += (p.W - taps_in_row) * p.lanes;
    weight_offset += (p.S - taps_in_row) * p.K;
  }

  __device__ __forceinline__ void fetch() {
    const ConvProblem& p = this->problem;
    if (channels_left == 0) next_tap();
    const int weight_row = p.R * p.S * p.K;
#pragma unroll
    for (int i = 0; i < A::kCount; ++i)
      this->a.value[i] =
          load_up_to_4(this->weight + weight_offset + i * A::kRowsPerPass * weight_row,
                       A::used(i) ? this->filters : 0, p.aligned_filters());
    const bool exists = inside(this->h, this->w, p.H, p.W);
#pragma unroll
    for (int i = 0; i < B::kCount; ++i)
      this->b.value[i] = exists && B::used(i)
                             ? load4(this->x + x_offset + i * B::kRowsPerPass * p.x_channel)
                             : zero4();
    x_offset += kStep * p.x_channel;
    weight_offset += kStep * weight_row;
    channels_left -= kStep;
  }
};

// Reduction order (c, r, s), as the weights lie in memory. Each thread counts its rows in mixed
// radix, without division.
template <class T>
struct Flat : Operands<T> {
  using typename Operands<T>::A;
  using typename Operands<T>::B;
  int steps;
  int row;                     // reduction row of slot 0 of the weights
  int step_c, step_r, step_s;  // kStep in digits (c, r, s)
  int c[B::kCount], r[B::kCount], s[B::kCount];

  __device__ __forceinline__ Flat(const ConvProblem& problem,
                                  const float* x,
                                  const float* weight,
                                  int first_filter,
                                  int64_t first_column)
      : Operands<T>(problem, x, weight, first_filter, first_column) {
    steps = (problem.C * problem.R * problem.S + kStep - 1) / kStep;
    row = A::row(0);
    digits(kStep, step_c, step_r, step_s);
#pragma unroll
    for (int i = 0; i < B::kCount; ++i) digits(B::row(i), c[i], r[i], s[i]);
  }

  __device__ __forceinline__ void digits(int index, int& c, int& r, int& s) const {
    s = index % this->problem.S;
    r = index / this->problem.S % this->problem.R;
    c = index / this->problem.S / this->problem.R;
  }

  __device__ __forceinline__ void fetch() {
    const ConvProblem& p = this->problem;
    const int row_count = p.C * p.R * p.S;
#pragma unroll
    for (int i = 0; i < A::kCount; ++i) {
      const int k = row + i * A::kRowsPerPass;
      this->a.value[i] =
          load_up_to_4(this->weight + this->weight_base + int64_t{k} * p.K,
                       A::used(i) && k < row_count ? this->filters : 0, p.aligned_filters());
    }
    row += kStep;
#pragma unroll
    for (int i = 0; i < B::kCount; ++i) {
      const int h = this->h + r[i], w = this->w + s[i];
      const bool exists = B::used(i) && c[i] < p.C && inside(h, w, p.H, p.W);
      this->b.value[i] =
          exists ? load4(this->x + this->x_base + ((c[i] * p.H + h) * p.W + w) * p.lanes) : zero4();
      s[i] += step_s;
      if (s[i] >= p.S) s[i] -= p.S, ++r[i];
      r[i] += step_r;
      if (r[i] >= p.R) r[i] -= p.R, ++c[i];
      c[i] += step_c;
    }
  }
};

template <class T>
__device__ __forceinline__ void store_output(const ConvProblem& problem,
                                             const Sums<T>& sums,
                                             const float* bias,
                                             bool relu,
                                             float* y,
                                             int first_filter,
                                             int64_t first_column) {
#pragma unroll
  for (int j = 0; j < T::kThreadN; j += 4) {
    const int64_t column = first_column + sums.column(j);
    if (column >= problem.columns) continue;
    const int64_t block = column / problem.y_channel;
    float* pixel = y + block * problem.y_block + (column - block * problem.y_channel);
#pragma unroll
    for (int i = 0; i < T::kThreadM; ++i) {
      const int filter = first_filter + sums.row(i);
      if (filter >= problem.K) continue;
      const int k = blockIdx.z * problem.K + filter;
      const float b = bias ? bias[k] : 0.0f;
      const float* v = sums.value[i];
      float4 out{v[j] + b, v[j + 1] + b, v[j + 2] + b, v[j + 3] + b};
      if (relu) out = rectified(out);
      store4(pixel + int64_t{k} * problem.y_channel, out);
    }
  }
}

template <class T, template <class> class Order>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerSm)
    conv_forward_kernel(const ConvProblem problem,
                        const float* x,
                        const float* weight,
                        const float* bias,
                        bool relu,
                        float* y) {
  auto& shared = shared_storage<Stages<T>>();
  const int first_filter = blockIdx.y * T::kM;
  const int64_t first_column = int64_t{blockIdx.x} * T::kN;
  Sums<T> sums;
  Order<T> operands(problem, x, weight, first_filter, first_column);
  multiply(sums, shared, operands, operands.steps);
  store_output(problem, sums, bias, relu, y, first_filter, first_column);
}

using Kernel = void (*)(ConvProblem, const float*, const float*, const float*, bool, float*);

template <class T, template <class> class Order>
constexpr Variant<Kernel> row() {
  return variant<T, Kernel>(conv_forward_kernel<T, Order>);
}

const Variant<Kernel> kByTap[] = {row<Tile<128, 128>, ByTap>(), row<Tile<64, 128>, ByTap>(),
                                  row<Tile<48, 256>, ByTap>(), row<Tile<32, 256>, ByTap>(),
                                  row<Tile<16, 256, 4>, ByTap>()};
const Variant<Kernel> kFlat[] = {row<Tile<128, 128>, Flat>(), row<Tile<64, 128>, Flat>(),
                                 row<Tile<48, 256>, Flat>(), row<Tile<32, 256>, Flat>(),
                                 row<Tile<16, 256, 4>, Flat>()};

}  // namespace

void conv_forward(const ConvShape& shape,
                  Precision precision,
                  const void* x,
                  const void* weight,
                  const float* bias,
                  void* y,
                  bool relu,
                  Stream stream) {
  require(precision == Precision::fp32, "conv_forward: tf32 and bf16 are not built yet");
  ConvProblem problem = conv_problem("conv_forward", shape);
  problem.columns = shape.N * shape.P * shape.Q;
  const auto& chosen = best_rows(problem.C % kStep == 0 ? kByTap : kFlat, problem.K);
  const Dim3 grid = output_grid("conv_forward", chosen, problem.K, problem.columns, problem.groups);
  launch(chosen.kernel, grid, Dim3(chosen.threads), chosen.shared_bytes, stream, problem,
         static_cast<const float*>(x), static_cast<const float*>(weight), bias, relu,
         static_cast<float*>(y));
}

}  // namespace convnet
