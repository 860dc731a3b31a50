// Convolution, gradient with respect to the input.
//
// What       dx[n,c,h,w] = sum over k, r, s of weight[k,c,r,s] dy[n,k,p,q] over the windows with
//            p*stride - pad + r = h and q*stride - pad + s = w; 0 where no window reads the pixel.
//            An implicit GEMM: GEMM-M = channels of a group, GEMM-N = (block, h, w, lane),
//            reduction over (r, s, k), filters innermost.
// Tensors    dy [N/L][K][P][Q][L], weight [g][C/g][R][S][K/g], dx [N/L][C][H][W][L]; float32
//            throughout.
// Work       one launch per phase, the pixels of one (h mod stride, w mod stride): they share their
//            taps first_tap, first_tap + stride, ..., so that each phase is a dense correlation and
//            no tap is tried in vain. One block per output tile: blockIdx = (pixels of the phase,
//            channels, group). A tile skips the taps that fall outside of dy for all of its pixels
//            (whole rows of taps). Variants from 128 x 128 down to 16 x 256, by the number of
//            channels (best_rows).
// Shared     two stages of both operands, 13 to 19 KiB (tile/gemm_tile.cuh). Weights lie with the
//            reduction contiguous and are transposed on the way (DepthSlots).
// Barriers   one per 8 reduction rows (tile/gemm_tile.cuh).
// Needs      as conv_forward. K/g not a multiple of 4 reads weights by scalars, not a multiple of 8
//            leaves reduction rows of each tap empty.
// Cost       2 N K P Q C/g R S FLOP, the bound (FFMA issue); a 128 x 128 tile reads 8 KiB per
//            131072 multiply-adds.
#include "conv_backward_data.hpp"

#include "arch/arch.cuh"
#include "tile/conv_problem.cuh"
#include "tile/loaders.cuh"
#include "tile/variants.cuh"

namespace convnet {
namespace {

// One axis of a phase: pixel number i of the phase is image coordinate offset + stride * i, and its
// tap number t reads output coordinate origin + i - t through filter coordinate
// first_tap + stride * t.
struct Axis {
  int pixels, offset, first_tap, taps, origin;
};

Axis axis_of(int phase, int size, int pad, int filter, int stride) {
  const int first_tap = (phase + pad) % stride;
  return Axis{int(ceil_div(size - phase, stride)), phase, first_tap,
              first_tap < filter ? (filter - 1 - first_tap) / stride + 1 : 0,
              (phase + pad) / stride};
}

// What the offsets of dy and of the weights move by: to the next kStep filters; from behind the
// last filter of a tap to the first one of the next tap; and on top of that from the end of a row
// of taps to the next row. Computed on the host: the loop takes them from constant memory instead
// of registers.
struct Moves {
  int step, tap, row;
};

struct Phase {
  Axis row, column;
  Moves dy, weight;
};

Phase phase_of(const ConvProblem& p, int row, int column) {
  Phase phase{axis_of(row, p.H, p.pad_top, p.R, p.stride),
              axis_of(column, p.W, p.pad_left, p.S, p.stride),
              {},
              {}};
  const int filters = int(round_up(p.K, kStep)), taps = phase.column.taps;
  phase.dy = Moves{kStep * p.y_channel, -filters * p.y_channel - p.lanes, (taps - p.Q) * p.lanes};
  phase.weight = Moves{kStep, p.stride * p.K - filters, p.stride * (p.S - taps) * p.K};
  return phase;
}

// kWholeSteps: the filters of a group fill their steps of kStep, so that nothing has to be checked
// per filter.
template <class T, bool kWholeSteps>
struct Operands {
  using A = DepthSlots<T::kM, T::kThreads>;
  using B = RowSlots<T::kN, T::kThreads>;
  static_assert(A::kCount == 1, "a block must fetch its weights in one pass");
  const ConvProblem& problem;
  const Phase& phase;
  const float* dy;
  const float* weight;
  A a;
  B b;
  int steps;
  int taps_left, filters_left;  // of this filter row, of this tap
  int p, q;                     // output pixel under the current tap
  int64_t dy_offset;
  int weight_offset;  // within the group

  __device__ __forceinline__ Operands(const ConvProblem& problem,
                                      const Phase& phase,
                                      const float* dy,
                                      const float* weight,
                                      int first_channel,
                                      int64_t first_column)
      : problem(problem),
        phase(phase),
        dy(dy),
        weight(weight + int64_t{blockIdx.z} * problem.C * problem.R * problem.S * problem.K) {
    const int group = blockIdx.z;
    const int64_t end = min(first_column + T::kN, problem.columns);
    const Span span =
        span_of(first_column, end - 1, phase.row.pixels, phase.column.pixels, problem.lanes);
    const int r_begin = max(0, phase.row.origin + span.row_min - problem.P + 1);
    const int r_end = min(phase.row.taps, phase.row.origin + span.row_max + 1);
    steps = max(0, r_end - r_begin) * phase.column.taps * ((problem.K + kStep - 1) / kStep);
    taps_left = phase.column.taps;
    filters_left = problem.K;

    const int64_t column = first_column + B::column();
    const Pixel pixel = pixel_of(column, phase.row.pixels, phase.column.pixels, problem.lanes);
    p = column < problem.columns ? phase.row.origin + pixel.row - r_begin : kOutside;
    q = phase.column.origin + pixel.column;
    dy_offset = pixel.block * problem.y_block +
                (int64_t{group} * problem.K + B::row(0)) * problem.y_channel +
                (int64_t{p} * problem.Q + q) * problem.lanes + pixel.lane;

    // Rows beyond the last channel repeat it; nobody stores them.
    const int channel = min(first_channel + A::column(0), problem.C - 1);
    const int r = phase.row.first_tap + r_begin * problem.stride;
    weight_offset =
        ((channel * problem.R + r) * problem.S + phase.column.first_tap) * problem.K + A::row();
  }

  __device__ __forceinline__ void next_tap() {
    filters_left = problem.K;
    dy_offset += phase.dy.tap;
    weight_offset += phase.weight.tap;
    --q;
    if (--taps_left > 0) return;
    taps_left = phase.column.taps;
    q += phase.column.taps;
    --p;
    dy_offset += phase.dy.row;
    weight_offset += phase.weight.row;
  }

  __device__ __forceinline__ void fetch() {
    if (filters_left <= 0) next_tap();
    const int a_valid = !A::used(0) ? 0 : kWholeSteps ? 4 : filters_left - A::row();
    a.value[0] = load_up_to_4(weight + weight_offset, a_valid, kWholeSteps || problem.K % 4 == 0);
    const bool exists = inside(p, q, problem.P, problem.Q);
#pragma unroll
    for (int i = 0; i < B::kCount; ++i)
      b.value[i] = exists && B::used(i) && (kWholeSteps || B::row(i) < filters_left)
                       ? load4(dy + dy_offset + i * B::kRowsPerPass * problem.y_channel)
                       : zero4();
    dy_offset += phase.dy.step;
    weight_offset += phase.weight.step;
    filters_left -= kStep;
  }

  __device__ __forceinline__ void store(Stage<T>& stage) const {
    a.store(stage.a);
    b.store(stage.b);
  }
};

template <class T>
__device__ __forceinline__ void store_output(const ConvProblem& problem,
                                             const Phase& phase,
                                             const Sums<T>& sums,
                                             float* dx,
                                             int first_channel,
                                             int64_t first_column) {
#pragma unroll
  for (int j = 0; j < T::kThreadN; j += 4) {
    const int64_t column = first_column + sums.column(j);
    if (column >= problem.columns) continue;
    const Pixel pixel = pixel_of(column, phase.row.pixels, phase.column.pixels, problem.lanes);
    const int h = phase.row.offset + pixel.row * problem.stride;
    const int w = phase.column.offset + pixel.column * problem.stride;
    float* target =
        dx + pixel.block * problem.x_block + (h * problem.W + w) * problem.lanes + pixel.lane +
        (int64_t{blockIdx.z} * problem.C + first_channel + sums.row(0)) * problem.x_channel;
#pragma unroll
    for (int i = 0; i < T::kThreadM; ++i) {
      const float* v = sums.value[i];
      if (first_channel + sums.row(i) < problem.C)
        store4(target, float4{v[j], v[j + 1], v[j + 2], v[j + 3]});
      target += int64_t{sums.row(i + 1) - sums.row(i)} * problem.x_channel;
    }
  }
}

template <class T, bool kWholeSteps>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerSm) conv_backward_data_kernel(
    const ConvProblem problem, const Phase phase, const float* dy, const float* weight, float* dx) {
  auto& shared = shared_storage<Stages<T>>();
  const int first_channel = blockIdx.y * T::kM;
  const int64_t first_column = int64_t{blockIdx.x} * T::kN;
  Sums<T> sums;
  Operands<T, kWholeSteps> operands(problem, phase, dy, weight, first_channel, first_column);
  multiply(sums, shared, operands, operands.steps);
  store_output(problem, phase, sums, dx, first_channel, first_column);
}

using Kernel = void (*)(ConvProblem, Phase, const float*, const float*, float*);

template <class T, bool kWholeSteps>
constexpr Variant<Kernel> row() {
  return variant<T, Kernel>(conv_backward_data_kernel<T, kWholeSteps>);
}

const Variant<Kernel> kWhole[] = {row<Tile<128, 128>, true>(), row<Tile<64, 128>, true>(),
                                  row<Tile<48, 256>, true>(), row<Tile<32, 256>, true>(),
                                  row<Tile<16, 256, 4>, true>()};
const Variant<Kernel> kAny[] = {row<Tile<64, 128>, false>(), row<Tile<16, 256, 4>, false>()};

}  // namespace

void conv_backward_data(const ConvShape& shape,
                        Precision precision,
                        const void* dy,
                        const void* weight,
                        void* dx,
                        Stream stream) {
  require(precision == Precision::fp32, "conv_backward_data: tf32 and bf16 are not built yet");
  ConvProblem problem = conv_problem("conv_backward_data", shape);
  const auto& chosen =
      problem.K % kStep == 0 ? best_rows(kWhole, problem.C) : best_rows(kAny, problem.C);
  for (int h = 0; h < problem.stride && h < problem.H; ++h)
    for (int w = 0; w < problem.stride && w < problem.W; ++w) {
      const Phase phase = phase_of(problem, h, w);
      problem.columns = shape.N * phase.row.pixels * phase.column.pixels;
      const Dim3 grid =
          output_grid("conv_backward_data", chosen, problem.C, problem.columns, problem.groups);
      launch(chosen.kernel, grid, Dim3(chosen.threads), chosen.shared_bytes, stream, problem, phase,
             static_cast<const float*>(dy), static_cast<const float*>(weight),
             static_cast<float*>(dx));
    }
}

}  // namespace convnet
