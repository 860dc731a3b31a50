// Convolution, forward.
//
// What       y[n,k,p,q] = bias[k] + sum over c, r, s of weight[k,c,r,s]
//            x[n,c,p*stride-pad+r,q*stride-pad+s], plus what y held before where asked, then ReLU
//            where asked; zero outside the image, grouped. An implicit GEMM: GEMM-M = filters of a group, GEMM-N = (block, p, q, lane),
//            reduction over (c, r, s). (On Hopper: tile/wgmma_maps.cuh in bf16,
//            tile/wgmma_maps_tf32.cuh in tf32.)
// Tensors    x [N/L][C][H][W][L], weight [g][C/g][R][S][K/g] (bf16: rows padded to K8), bias [K], y
//            [N/L][K][P][Q][L]; x, weight and y by precision, bias and sums float32. Order of each
//            sum, by the number of channels of a group: whole units of 8 (fp32) or 16 (tf32, bf16)
//            go tap by tap, channels innermost (ByTap); any other number goes through (c, r, s) in
//            memory order (Flat; the first layer's 3 channels would leave most rows of a unit empty
//            tap by tap).
// Work       one block per output tile: blockIdx = (pixels, filters, group); kVariants chooses the
//            tile by the number of filters, and a small one for a few images. A tile skips taps that
//            fall outside the image for all of its pixels (ByTap): up to 10 % of a 3x3 layer at
//            13x13, about half of it where a tile is two pixels of 64 lanes.
// Shared     a ring of both operands (tile/gemm_tile.cuh), 50 KiB for 128 x 128 sums in fp32, 51
//            KiB in tf32 and bf16.
// Barriers   one per stage (tile/gemm_tile.cuh).
// Needs      lanes a multiple of 8, N a multiple of lanes, groups divide C and K, one group of one
//            image block, R W lanes and S lanes below 2^31 values, 16-byte aligned tensors. float32
//            weights with K/g not a multiple of 4 are copied 4 bytes at a time.
// Cost       2 N K P Q C/g R S FLOP, the bound: FFMA issue in fp32, tensor cores else. A 128 x 128
//            tile reads 256 values from L2 or L1 per 16384 multiply-adds: in fp32 8 bytes per clock
//            and SM at 128 multiply-adds per clock, in bf16 on sm_80 32 at 1024.
#include "conv_forward.hpp"

#include "arch/arch.cuh"
#include "tile/conv_problem.cuh"
#include "tile/epilogue.cuh"
#include "tile/loaders.cuh"
#include "tile/simt.cuh"
#include "tile/tensor_core.cuh"
#include "tile/variants.cuh"
#include "tile/wgmma_maps.cuh"
#include "tile/wgmma_maps_tf32.cuh"

namespace convnet {
namespace {

// Where a tile lies, and the parts of both reduction orders that do not depend on the order.
template <class T>
struct Operands {
  using Element = typename T::Arithmetic::Element;
  using A = RowSlots<typename T::Arithmetic, T::kM, T::kThreads>;
  using B = RowSlots<typename T::Arithmetic, T::kN, T::kThreads>;
  static constexpr int kDepth = T::Arithmetic::kDepth;
  const ConvProblem& problem;
  const Element* x;       // of this thread's lanes, channel 0 of the group, under tap (0, 0)
  const Element* weight;  // of this thread's filters in reduction row 0
  int filters;            // how many of this thread's filters exist (also 0, or more than its slot)
  int h, w;               // input pixel under tap (0, 0)

  __device__ __forceinline__ Operands(const ConvProblem& problem,
                                      const Element* x,
                                      const Element* weight,
                                      int first_filter,
                                      int64_t first_column)
      : problem(problem) {
    const int group = blockIdx.z;
    const int filter = first_filter + A::column();
    filters = problem.K - filter;
    this->weight =
        weight + int64_t{group} * problem.C * problem.R * problem.S * problem.weight_row + filter;
    const int64_t column = first_column + B::column();
    const Pixel pixel = pixel_of(column, problem.P, problem.Q, problem.lanes);
    h = column < problem.columns ? pixel.row * problem.stride - problem.pad_top : kOutside;
    w = pixel.column * problem.stride - problem.pad_left;
    this->x = x + pixel.block * problem.x_block + int64_t{group} * problem.C * problem.x_channel +
              (int64_t{h} * problem.W + w) * problem.lanes + pixel.lane;
  }
};

// Reduction order (r, s, c): all channels of a tap, then the next tap. C is a multiple of kDepth.
// x and weight move along, with slot 0, and h and w are of the pixel under the tap.
template <class T>
struct ByTap : Operands<T> {
  using typename Operands<T>::A;
  using typename Operands<T>::B;
  using typename Operands<T>::Element;
  using Operands<T>::kDepth;
  int units;
  int taps_in_row;  // taps of a filter row that meet the image for at least one pixel of the tile
  int taps_left, channels_left;  // of this filter row, of this tap
  bool meets;                    // whether this thread's pixels have the tap inside the image

  __device__ __forceinline__ ByTap(const ConvProblem& p,
                                   const Element* x,
                                   const Element* weight,
                                   int first_filter,
                                   int64_t first_column)
      : Operands<T>(p, x, weight, first_filter, first_column) {
    const int64_t end = min(first_column + T::kN, p.columns);
    const Span span = span_of(first_column, end - 1, p.P, p.Q, p.lanes);
    const int r_begin = max(0, p.pad_top - span.row_max * p.stride);
    const int r_end = min(p.R, p.H + p.pad_top - span.row_min * p.stride);
    const int s_begin = max(0, p.pad_left - span.column_max * p.stride);
    const int s_end = min(p.S, p.W + p.pad_left - span.column_min * p.stride);
    units = max(0, r_end - r_begin) * max(0, s_end - s_begin) * (p.C / kDepth);
    taps_in_row = taps_left = s_end - s_begin;
    channels_left = p.C;
    this->h += r_begin;
    this->w += s_begin;
    meets = inside(this->h, this->w, p.H, p.W);
    this->x += (int64_t{r_begin} * p.W + s_begin) * p.lanes + int64_t{B::row(0)} * p.x_channel;
    this->weight += ((int64_t{A::row(0)} * p.R + r_begin) * p.S + s_begin) * p.weight_row;
  }

  __device__ __forceinline__ void next_tap() {
    const ConvProblem& p = this->problem;
    channels_left = p.C;
    this->x += p.lanes - p.C * p.x_channel;
    this->weight += p.weight_row - p.C * p.R * p.S * p.weight_row;
    ++this->w;
    if (--taps_left == 0) {
      taps_left = taps_in_row;
      this->w -= taps_in_row;
      ++this->h;
      this->x += (p.W - taps_in_row) * p.lanes;
      this->weight += (p.S - taps_in_row) * p.weight_row;
    }
    meets = inside(this->h, this->w, p.H, p.W);
  }

  __device__ __forceinline__ void copy(Unit<ByTap>& unit, bool unit_exists) {
    const ConvProblem& p = this->problem;
    if (channels_left == 0) next_tap();
    const int channel_weights = p.R * p.S * p.weight_row;
#pragma unroll
    for (int i = 0; i < A::kCount; ++i)
      A::copy(unit.a, i, this->weight + i * A::kRowsPerPass * channel_weights, unit_exists,
              this->filters, p.whole_filters());
#pragma unroll
    for (int i = 0; i < B::kCount; ++i)
      B::copy(unit.b, i, this->x + i * B::kRowsPerPass * p.x_channel, unit_exists & meets);
    this->x += kDepth * p.x_channel;
    this->weight += kDepth * channel_weights;
    channels_left -= kDepth;
  }
};

// Reduction order (c, r, s), as the weights lie in memory. Each thread counts its rows in mixed
// radix, without division.
template <class T>
struct Flat : Operands<T> {
  using typename Operands<T>::A;
  using typename Operands<T>::B;
  using typename Operands<T>::Element;
  using Operands<T>::kDepth;
  int units;
  int left;            // reduction rows from the current unit on
  int step_r, step_s;  // of kDepth in digits (c, r, s)
  int step;            // of x by kDepth, if there is a second unit, and on top of that
  int next_row;        // where digit s runs over,
  int next_channel;    // where digit r does
  const Element* source[B::kCount];          // of a slot,
  int slot_h[B::kCount], slot_w[B::kCount];  // the input pixel there

  __device__ __forceinline__ Flat(const ConvProblem& p,
                                  const Element* x,
                                  const Element* weight,
                                  int first_filter,
                                  int64_t first_column)
      : Operands<T>(p, x, weight, first_filter, first_column) {
    left = p.C * p.R * p.S;
    units = (left + kDepth - 1) / kDepth;
    this->weight += int64_t{A::row(0)} * p.weight_row;
    step = static_cast<int>(digits(kDepth, step_r, step_s));
    next_row = (p.W - p.S) * p.lanes;
    next_channel = (p.H - p.R) * p.W * p.lanes;
#pragma unroll
    for (int i = 0; i < B::kCount; ++i) {
      source[i] = this->x + digits(B::row(i), slot_h[i], slot_w[i]);
      slot_h[i] += this->h, slot_w[i] += this->w;
    }
  }

  // Digits r and s of a reduction row, and where it lies in x.
  __device__ __forceinline__ int64_t digits(unsigned row, int& r, int& s) const {
    const ConvProblem& p = this->problem;
    const unsigned next = row / unsigned(p.S);
    s = static_cast<int>(row % unsigned(p.S));
    r = static_cast<int>(next % unsigned(p.R));
    return ((int64_t{next / unsigned(p.R)} * p.H + r) * p.W + s) * p.lanes;
  }

  // Units behind the end lie behind the last row, too.
  __device__ __forceinline__ void copy(Unit<Flat>& unit, bool) {
    const ConvProblem& p = this->problem;
#pragma unroll
    for (int i = 0; i < A::kCount; ++i)
      A::copy(unit.a, i, this->weight + int64_t{i * A::kRowsPerPass} * p.weight_row,
              A::row(i) < left, this->filters, p.whole_filters());
    this->weight += int64_t{kDepth} * p.weight_row;
#pragma unroll
    for (int i = 0; i < B::kCount; ++i) {
      int &h = slot_h[i], &w = slot_w[i];
      B::copy(unit.b, i, source[i], (B::row(i) < left) & inside(h, w, p.H, p.W));
      int move = step;
      w += step_s;
      if (w >= this->w + p.S) w -= p.S, ++h, move += next_row;
      h += step_r;
      if (h >= this->h + p.R) h -= p.R, move += next_channel;
      source[i] += move;
    }
    left -= kDepth;
  }
};

template <class Sums, class Element>
__device__ __forceinline__ void store_output(const ConvProblem& problem,
                                             const Sums& sums,
                                             const float* bias,
                                             bool relu,
                                             bool accumulate,
                                             Element* y,
                                             int first_filter,
                                             int64_t first_column) {
  const int first = first_filter + sums.row(0), filters = problem.K - first;
  y += (int64_t{blockIdx.z} * problem.K + first) * problem.y_channel;
  float bias_of[Sums::kRows];
#pragma unroll
  for (int i = 0; i < Sums::kRows; ++i) {
    const int k = sums.row(i) - sums.row(0);
    bias_of[i] = bias && k < filters ? bias[blockIdx.z * problem.K + first + k] : 0.0f;
  }
  Place place = place_of(first_column + sums.column(0), problem.y_channel);
#pragma unroll
  for (int j = 0; j < Sums::kQuads; ++j) {
    if (j > 0) place.advance(sums.column(j) - sums.column(j - 1), problem.y_channel);
    if (first_column + sums.column(j) >= problem.columns) continue;
    Element* pixel = y + place.block * problem.y_block + place.rest;
#pragma unroll
    for (int i = 0; i < Sums::kRows; ++i) {
      const int k = sums.row(i) - sums.row(0);
      if (k >= filters) continue;
      Element* target = pixel + int64_t{k} * problem.y_channel;
      float4 v = add(sums.quad(i, j), bias_of[i]);
      if (accumulate) v = add(v, load4(target));
      store4(target, relu ? rectified(v) : v);
    }
  }
}

template <class T, template <class> class Order>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerSm)
    conv_forward_kernel(const ConvProblem problem,
                        const typename T::Arithmetic::Element* x,
                        const typename T::Arithmetic::Element* weight,
                        const float* bias,
                        bool relu,
                        bool accumulate,
                        typename T::Arithmetic::Element* y) {
  begin_kernel();
  auto& ring = shared_storage<Ring<Order<T>>>();
  const int first_filter = blockIdx.y * T::kM;
  const int64_t first_column = int64_t{blockIdx.x} * T::kN;
  typename T::Sums sums;
  Order<T> operands(problem, x, weight, first_filter, first_column);
  multiply(sums, ring, operands, operands.units);
  sums.finish();
  store_output(problem, sums, bias, relu, accumulate, y, first_filter, first_column);
}

struct Arguments {
  const void* x;
  const void* weight;
  const float* bias;
  void* y;
  bool relu, accumulate;
  Stream stream;
};

template <class T>
void run(const ConvShape& shape, const Arguments& arguments) {
  using Element = typename T::Arithmetic::Element;
  ConvProblem problem = conv_problem(shape, T::Arithmetic::kPrecision);
  problem.columns = shape.N * shape.P * shape.Q;
  const Dim3 grid = tile_grid("conv_forward", ceil_div(problem.columns, T::kN),
                              ceil_div(problem.K, T::kM), problem.groups);
  const bool by_tap = problem.C % T::Arithmetic::kDepth == 0;
  launch(by_tap ? conv_forward_kernel<T, ByTap> : conv_forward_kernel<T, Flat>, grid,
         Dim3(T::kThreads), sizeof(Ring<ByTap<T>>), arguments.stream, problem,
         static_cast<const Element*>(arguments.x), static_cast<const Element*>(arguments.weight),
         arguments.bias, arguments.relu, arguments.accumulate, static_cast<Element*>(arguments.y));
}

template <class T>
void run_wgmma(const ConvShape& s, const Arguments& a) {
  const int64_t blocks = s.N / s.lanes;
  MapsCall call{};
  call.in = image_activation(a.x, s.C, s.H, s.W, blocks);
  call.out = image_activation(a.y, s.K, s.P, s.Q, blocks);
  call.weight = a.weight, call.bias = a.bias, call.relu = a.relu;
  call.R = s.R, call.S = s.S, call.stride = s.stride, call.groups = s.groups, call.parts = 1;
  call.pad_top = s.pad_top, call.pad_left = s.pad_left;
  launch_maps<T, SharedWeights>("conv_forward", call, a.stream);
}

template <class T>
void run_wgmma_tf32(const ConvShape& s, const Arguments& a) {
  const int64_t blocks = s.N / s.lanes;
  launch_maps_tf32<T>("conv_forward", s, float_activation(a.x, s.C, s.H, s.W, blocks),
                      float_activation(a.y, s.K, s.P, s.Q, blocks), a.weight,
                      {a.bias, nullptr, static_cast<float*>(a.y)}, a.relu, a.stream);
}

using Row = Variant<ConvShape, Arguments>;

template <class T>
constexpr Row row(const char* name, const char* when, bool (*takes)(const ConvShape&)) {
  return variant<T>(name, when, takes, run<T>);
}

int64_t filters(const ConvShape& s) { return s.K / s.groups; }

bool any(const ConvShape&) { return true; }
bool few(const ConvShape& s) { return filters(s) <= 32; }
bool half_filled(const ConvShape& s) { return half_filled_tiles(filters(s)); }
// Of a few images: tiles of 128 x 128 would leave most of a GPU idle.
bool few_tiles(const ConvShape& s) {
  return ceil_div(s.N * s.P * s.Q, 128) * ceil_div(filters(s), 128) * s.groups <= 63;
}

// On Hopper: whole blocks of 64 images, and channels that fill most of their chunks.
template <class T, bool (*kRule)(const ConvShape&)>
bool takes_wgmma(const ConvShape& s) {
  return s.lanes == 64 && T::takes(s.stride, s.S, s.C / s.groups, s.groups, s.Q) && kRule(s);
}

template <int kMaps, int kPixels, bool (*kRule)(const ConvShape&)>
constexpr Row wgmma(const char* name, const char* when) {
  using T = MapsTile<kMaps, kPixels, 16, true>;
  return {name, Precision::bf16,       90,           64 * kPixels,       kMaps,
          when, takes_wgmma<T, kRule>, run_wgmma<T>, takes_wgmma<T, any>};
}

template <class T, bool (*kRule)(const ConvShape&)>
bool takes_wgmma_tf32(const ConvShape& s) {
  return T::takes(s, s.C / s.groups, s.Q) && kRule(s);
}

template <class T, bool (*kRule)(const ConvShape&)>
constexpr Row wgmma_tf32(const char* name, const char* when) {
  return {name,
          Precision::tf32,
          90,
          64 * T::kPixels,
          T::kMaps,
          when,
          takes_wgmma_tf32<T, kRule>,
          run_wgmma_tf32<T>,
          takes_wgmma_tf32<T, any>};
}

bool up_to_64(const ConvShape& s) { return filters(s) <= 64; }
bool up_to_96(const ConvShape& s) { return filters(s) <= 96; }
bool times_192(const ConvShape& s) { return filters(s) % 192 == 0; }
// Tiles of three pixels read more per product than those of four; they pay where they fill the
// multiprocessors better.
bool in_threes(const ConvShape& s) {
  const Activation y = image_activation(nullptr, s.K, s.P, s.Q, s.N / s.lanes);
  return rounds_of_tiles(y, s.groups, 128, 3) < 0.95 * rounds_of_tiles(y, s.groups, 128, 4);
}

const Row kVariants[] = {
    wgmma<64, 4, up_to_64>("wgmma-256x64", "64 lanes, K/g <= 64"),
    wgmma<96, 8, up_to_96>("wgmma-512x96", "64 lanes, K/g <= 96"),
    wgmma<192, 3, times_192>("wgmma-192x192", "64 lanes, K/g a multiple of 192"),
    wgmma<128, 3, in_threes>("wgmma-192x128", "64 lanes, fewer rounds than with four pixels"),
    wgmma<128, 4, any>("wgmma-256x128", "64 lanes"),
    wgmma<128, 2, any>("wgmma-128x128", "64 lanes, wide filters"),

    wgmma_tf32<MapsTileTf32<128, 4, 2, 5, true>, any>("wgmma_tf32-256x128x5",
                                                      "64 lanes, stride 1, S = 5"),
    wgmma_tf32<MapsTileTf32<96, 6, 2, 3, true>, up_to_96>("wgmma_tf32-384x96x3",
                                                          "64 lanes, stride 1, S = 3, K/g <= 96"),
    wgmma_tf32<MapsTileTf32<192, 3, 3, 3, true>, times_192>(
        "wgmma_tf32-192x192x3", "64 lanes, stride 1, S = 3, K/g a multiple of 192"),
    wgmma_tf32<MapsTileTf32<128, 3, 3, 3, true>, any>("wgmma_tf32-192x128x3",
                                                      "64 lanes, stride 1, S = 3"),

    row<SimtTile<16, 256, 4>>(
        "fp32-16x256", "K/g <= 16", [](const ConvShape& s) { return filters(s) <= 16; }),
    row<SimtTile<48, 256>>(
        "fp32-48x256", "K/g <= 48", [](const ConvShape& s) { return filters(s) <= 48; }),
    row<SimtTile<96, 128>>("fp32-96x128",
                           "K/g in 65..96",
                           [](const ConvShape& s) { return filters(s) > 64 && filters(s) <= 96; }),
    row<SimtTile<64, 64, 4>>("fp32-64x64", "128x128 tiles <= 63", few_tiles),
    row<SimtTile<64, 128>>("fp32-64x128", "K/g <= 64 or 129..192", half_filled),
    row<SimtTile<128, 128>>("fp32-128x128", "any", any),

    row<MmaTile<Tf32, 32, 128, 32, 32>>("tf32-32x128", "K/g <= 32", few),
    row<MmaTile<Tf32, 64, 64, 32, 32>>("tf32-64x64", "128x128 tiles <= 63", few_tiles),
    row<MmaTile<Tf32, 64, 128, 32, 64>>("tf32-64x128", "K/g <= 64 or 129..192", half_filled),
    row<MmaTile<Tf32, 128, 128, 64, 64>>("tf32-128x128", "any", any),

    row<MmaTile<Bf16, 32, 128, 32, 32>>("bf16-32x128", "K/g <= 32", few),
    row<MmaTile<Bf16, 64, 64, 32, 32>>("bf16-64x64", "128x128 tiles <= 63", few_tiles),
    row<MmaTile<Bf16, 64, 128, 32, 64>>("bf16-64x128", "K/g <= 64 or 129..192", half_filled),
    row<MmaTile<Bf16, 128, 128, 64, 64>>("bf16-128x128", "any", any),
};

}  // namespace

void conv_forward(const ConvShape& shape,
                  Precision precision,
                  const void* x,
                  const void* weight,
                  const float* bias,
                  void* y,
                  bool relu,
                  bool accumulate,
                  Stream stream) {
  check("conv_forward", shape);
  choose("conv_forward", kVariants, shape, precision, accumulate)
      .run(shape, Arguments{x, weight, bias, y, relu, accumulate, stream});
}

std::string conv_forward_variant(const ConvShape& shape, Precision precision) {
  check("conv_forward", shape);
  return choose("conv_forward", kVariants, shape, precision).name;
}

std::vector<VariantRow> conv_forward_variants() { return listed("conv_forward", kVariants); }

}  // namespace convnet
