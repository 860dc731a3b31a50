// Convolution, gradient with respect to filters and biases.
//
// What       dweight[k,c,r,s] = sum over n, p, q of dy[n,k,p,q]
//            x[n,c,p*stride-pad+r,q*stride-pad+s], x zero outside the image; dbias[k] = sum over n,
//            p, q of dy[n,k,p,q]. An implicit GEMM: GEMM-M = filters of a group, GEMM-N = (c, r,
//            s), reduction over (block, p, q, lane), in which both operands are contiguous.
// Tensors    dy [N/L][K][P][Q][L], x [N/L][C][H][W][L], dweight [g][C/g][R][S][K/g], dbias [K];
//            float32 throughout. workspace: [parts] times dweight, or [N/L] times dbias, the
//            larger; rows padded to 4 floats.
// Work       the reduction is cut into parts of about kPartColumns (pixel, lane) columns, whose
//            number depends on N, P and Q alone. One block per output tile and part, blockIdx =
//            (c r s, part and filters, group). A second kernel adds the parts in ascending order.
//            dbias: tile/sums.cuh.
// Shared     two stages of both operands, 10 to 17 KiB (tile/gemm_tile.cuh); both are transposed on
//            the way (DepthSlots).
// Barriers   one per 8 columns (tile/gemm_tile.cuh).
// Needs      as conv_forward; lanes in eights, so that a step of the reduction never leaves a
//            pixel.
// Cost       2 N K P Q C/g R S FLOP, the bound (FFMA issue). A 128 x 128 tile reads 256 sectors of
//            32 bytes per 131072 multiply-adds. The parts add 8 bytes per weight and part: 2 % of
//            the time of a 5x5 layer at N = 128.
#include "conv_backward_filter.hpp"

#include <algorithm>

#include "arch/arch.cuh"
#include "tile/conv_problem.cuh"
#include "tile/loaders.cuh"
#include "tile/sums.cuh"
#include "tile/variants.cuh"

namespace convnet {
namespace {

// 2432 columns per part give the five layers of the 2012 network at N = 128 1.0, 1.8, 1.9 or 3.0
// waves of 264 blocks (132 SMs with two blocks each): at least nine tenths of the slots are busy.
// Larger batches get longer parts, not more, so that the workspace stays bounded: 48 MB for the
// 256 x 48 x 5 x 5 filters of a layer at 27 x 27.
constexpr int64_t kPartColumns = 2432, kPartImages = 128, kMostParts = 256;

struct Split {
  int64_t parts, steps_per_part;  // a step is kStep columns
};

Split split_of(const ConvShape& shape) {
  const int64_t pixels = shape.P * shape.Q, steps = shape.N * pixels / kStep;
  const int64_t wanted = ceil_div(std::min(shape.N, kPartImages) * pixels, kPartColumns);
  const int64_t steps_per_part = ceil_div(steps, std::min(wanted, kMostParts));
  return Split{ceil_div(steps, steps_per_part), steps_per_part};
}

struct Reduction {
  int64_t steps, steps_per_part;
  int64_t part_stride;  // floats from one part's dweight to the next
  int row_tiles;        // tiles of filters in a part
  int h_begin, h_end, w_begin,
      w_end;    // input pixel under tap (0, 0): of the first window, past the last window
  int x_pixel;  // moves of x: to the next pixel,
  int64_t x_row, x_next_block;  // on top of that to the next row, and to the next image block
  int64_t dy_next_block;        // move of dy to the next image block
};

Reduction reduction_of(const ConvProblem& p,
                       const Split& split,
                       int64_t steps,
                       int64_t part_stride) {
  Reduction r{};
  r.steps = steps, r.steps_per_part = split.steps_per_part, r.part_stride = part_stride;
  r.h_begin = -p.pad_top, r.h_end = p.P * p.stride - p.pad_top;
  r.w_begin = -p.pad_left, r.w_end = p.Q * p.stride - p.pad_left;
  r.x_pixel = (p.stride - 1) * p.lanes;  // a pixel's lanes have been passed already
  r.x_row = int64_t{p.W - p.Q} * p.stride * p.lanes;
  r.x_next_block = p.x_block - int64_t{p.P} * p.stride * p.W * p.lanes;
  r.dy_next_block = p.y_block - p.y_channel;
  return r;
}

template <class T>
struct Operands {
  using A = DepthSlots<T::kM, T::kThreads>;
  using B = DepthSlots<T::kN, T::kThreads>;
  static_assert(A::kCount == 1, "a block must fetch dy in one pass");
  const ConvProblem& problem;
  const Reduction& reduction;
  const float* dy;
  const float* x;
  A a;
  B b;
  int h, w;                     // input pixel under tap (0, 0)
  int lanes_left;               // of this pixel
  int64_t dy_offset, x_offset;  // of slot 0
  int tap[B::kCount];           // offset of the (c, r, s) of other slots from that of slot 0
  int r[B::kCount], s[B::kCount];

  __device__ __forceinline__ Operands(const ConvProblem& p,
                                      const Reduction& reduction,
                                      const float* dy,
                                      const float* x,
                                      int group,
                                      int first_filter,
                                      int first_column,
                                      int64_t first_step)
      : problem(p), reduction(reduction), dy(dy), x(x) {
    const Pixel pixel = pixel_of(first_step * kStep, p.P, p.Q, p.lanes);
    h = pixel.row * p.stride - p.pad_top;
    w = pixel.column * p.stride - p.pad_left;
    lanes_left = p.lanes - pixel.lane;
    // Rows and columns beyond the last repeat it; nobody stores them.
    const int filter = min(first_filter + A::column(0), p.K - 1);
    dy_offset = pixel.block * p.y_block + (int64_t{group} * p.K + filter) * p.y_channel +
                (pixel.row * p.Q + pixel.column) * p.lanes + pixel.lane + A::row();
    x_offset = pixel.block * p.x_block + int64_t{group} * p.C * p.x_channel +
               (int64_t{h} * p.W + w) * p.lanes + pixel.lane + B::row();
#pragma unroll
    for (int i = 0; i < B::kCount; ++i) {
      const int column = min(first_column + B::column(i), p.C * p.R * p.S - 1);
      s[i] = column % p.S;
      r[i] = column / p.S % p.R;
      tap[i] = column / p.S / p.R * p.x_channel + (r[i] * p.W + s[i]) * p.lanes;
    }
    x_offset += tap[0];
#pragma unroll
    for (int i = B::kCount - 1; i >= 0; --i) tap[i] -= tap[0];
  }

  __device__ __forceinline__ void next_pixel() {
    const ConvProblem& p = problem;
    lanes_left = p.lanes;
    w += p.stride;
    x_offset += reduction.x_pixel;
    if (w != reduction.w_end) return;
    w = reduction.w_begin;
    h += p.stride;
    x_offset += reduction.x_row;
    if (h != reduction.h_end) return;
    h = reduction.h_begin;
    x_offset += reduction.x_next_block;
    dy_offset += reduction.dy_next_block;
  }

  __device__ __forceinline__ void fetch() {
    if (lanes_left == 0) next_pixel();
    a.value[0] = A::used(0) ? load4(dy + dy_offset) : zero4();
#pragma unroll
    for (int i = 0; i < B::kCount; ++i)
      b.value[i] = B::used(i) && inside(h + r[i], w + s[i], problem.H, problem.W)
                       ? load4(x + x_offset + tap[i])
                       : zero4();
    dy_offset += kStep;
    x_offset += kStep;
    lanes_left -= kStep;
  }

  __device__ __forceinline__ void store(Stage<T>& stage) const {
    a.store(stage.a);
    b.store(stage.b);
  }
};

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerSm)
    conv_backward_filter_kernel(const ConvProblem problem,
                                const Reduction reduction,
                                const float* dy,
                                const float* x,
                                float* partial) {
  auto& shared = shared_storage<Stages<T>>();
  const int group = blockIdx.z;
  const int part = blockIdx.y / unsigned(reduction.row_tiles);
  const int first_filter = blockIdx.y % unsigned(reduction.row_tiles) * T::kM;
  const int first_column = blockIdx.x * T::kN;
  const int64_t first_step = part * reduction.steps_per_part;
  const int steps = static_cast<int>(min(reduction.steps_per_part, reduction.steps - first_step));
  const int columns = problem.C * problem.R * problem.S;

  Operands<T> operands(problem, reduction, dy, x, group, first_filter, first_column, first_step);
  Sums<T> sums;
  multiply(sums, shared, operands, steps);
  partial += part * reduction.part_stride + int64_t{group} * columns * problem.K;
  store_transposed(sums, partial, first_filter, problem.K, first_column, columns);
}

using Kernel = void (*)(ConvProblem, Reduction, const float*, const float*, float*);

template <class T>
constexpr Variant<Kernel> row() {
  return variant<T, Kernel>(conv_backward_filter_kernel<T>);
}

const Variant<Kernel> kVariants[] = {row<Tile<128, 128>>(), row<Tile<96, 128>>(),
                                     row<Tile<64, 128>>(), row<Tile<32, 128>>(),
                                     row<Tile<16, 128, 4>>()};

}  // namespace

int64_t conv_backward_filter_workspace(const ConvShape& shape, Precision) {
  conv_problem("conv_backward_filter_workspace", shape);
  const int64_t weights = shape.K * (shape.C / shape.groups) * shape.R * shape.S;
  const int64_t parts = split_of(shape).parts;
  const int64_t filter_floats = parts > 1 ? parts * round_up(weights, 4) : 0;
  const int64_t bias_floats = shape.N / shape.lanes * round_up(shape.K, 4);
  return std::max(filter_floats, bias_floats) * int64_t{sizeof(float)};
}

void conv_backward_filter(const ConvShape& shape,
                          Precision precision,
                          const void* dy_any,
                          const void* x_any,
                          float* dweight,
                          float* dbias,
                          float* workspace,
                          Stream stream) {
  require(precision == Precision::fp32, "conv_backward_filter: tf32 and bf16 are not built yet");
  const float* dy = static_cast<const float*>(dy_any);
  const float* x = static_cast<const float*>(x_any);
  const ConvProblem problem = conv_problem("conv_backward_filter", shape);
  const int64_t columns = int64_t{problem.C} * problem.R * problem.S, weights = shape.K * columns;
  const Split split = split_of(shape);
  Reduction reduction =
      reduction_of(problem, split, shape.N * shape.P * shape.Q / kStep, round_up(weights, 4));
  const auto& chosen = best_rows(kVariants, problem.K);
  reduction.row_tiles = int(ceil_div(problem.K, chosen.rows));
  const Dim3 grid =
      output_grid("conv_backward_filter", chosen, split.parts * reduction.row_tiles * chosen.rows,
                  columns, shape.groups);
  launch(chosen.kernel, grid, Dim3(chosen.threads), chosen.shared_bytes, stream, problem, reduction,
         dy, x, split.parts > 1 ? workspace : dweight);
  if (split.parts > 1) sum_parts(weights, split.parts, workspace, dweight, stream);
  if (dbias)  // in stream order behind the sums of dweight, so that both may use the same workspace
    sum_rows(shape.N / shape.lanes, shape.K, problem.y_channel, dy, dbias, workspace, stream);
}

}  // namespace convnet
