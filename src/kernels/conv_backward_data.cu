// Convolution, gradient with respect to the input.
//
// What       dx[n,c,h,w] = sum over k, r, s of weight[k,c,r,s] dy[n,k,p,q] over the windows with
//            p*stride - pad + r = h and q*stride - pad + s = w; 0 where no window reads the pixel,
//            and, with a mask, where mask[n,c,h,w] > 0 does not hold: the mask is x, the output of
//            a ReLU, and dx is then the gradient in front of it. An implicit GEMM: GEMM-M =
//            channels of a group, GEMM-N = (block, h, w, lane), reduction over (r, s, k), filters
//            innermost. (On Hopper: tile/wgmma_maps.cuh in bf16, tile/wgmma_maps_tf32.cuh in tf32.)
// Tensors    dy [N/L][K][P][Q][L], weight [g][C/g][R][S][K/g] (bf16: rows padded to K8),
//            dx, mask [N/L][C][H][W][L]; all by precision, sums float32.
// Work       one launch per phase, the pixels of one (h mod stride, w mod stride): they share their
//            taps first_tap, first_tap + stride, ..., so that each phase is a dense correlation and
//            no tap is tried in vain. One block per output tile: blockIdx = (pixels of the phase,
//            channels, group); kVariants chooses the tile by the number of channels. A tile skips
//            the taps that fall outside of dy for all of its pixels (whole rows of taps).
// Shared     a ring of both operands (tile/gemm_tile.cuh), 44 KiB for 64 x 128 sums in fp32; for
//            128 x 128 sums 56 KiB in tf32, 62 KiB in bf16. Weights lie with the reduction
//            contiguous (DepthSlots).
// Barriers   one per stage (tile/gemm_tile.cuh).
// Needs      as conv_forward. K/g not a multiple of a unit (8 in fp32, 16 in tf32 and bf16) leaves
//            reduction rows of each tap empty.
// Cost       2 N K P Q C/g R S FLOP, the bound: FFMA issue in fp32, tensor cores else. Reads as
//            conv_forward, and the mask, once.
#include "conv_backward_data.hpp"

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

// What the offsets of dy and of the weights move by: to the next unit of filters; from behind the
// last unit of a tap to the first one of the next tap; and on top of that from the end of a row of
// taps to the next row. Computed on the host in 64 bits: the loop takes them from constant memory
// instead of registers.
struct Moves {
  int64_t unit, tap, row;
};

struct Phase {
  Axis row, column;
  Moves dy, weight;
  int64_t weight_slot;  // from one slot's weights to those of a thread's next one
};

Phase phase_of(const ConvProblem& p, int depth, int slot_channels, int row, int column) {
  Phase phase{axis_of(row, p.H, p.pad_top, p.R, p.stride),
              axis_of(column, p.W, p.pad_left, p.S, p.stride),
              {},
              {},
              int64_t{slot_channels} * p.R * p.S * p.weight_row};
  const int64_t filters = round_up(p.K, depth), taps = phase.column.taps;
  phase.dy =
      Moves{int64_t{depth} * p.y_channel, -filters * p.y_channel - p.lanes, (taps - p.Q) * p.lanes};
  phase.weight =
      Moves{depth, p.stride * p.weight_row - filters, p.stride * (p.S - taps) * p.weight_row};
  return phase;
}

template <class T>
struct Operands {
  using Element = typename T::Arithmetic::Element;
  using A = DepthSlots<typename T::Arithmetic, T::kM, T::kThreads>;
  using B = RowSlots<typename T::Arithmetic, T::kN, T::kThreads>;
  static constexpr int kDepth = T::Arithmetic::kDepth;
  const ConvProblem& problem;
  const Phase& phase;
  const Element* dy;      // of slot 0, under the current tap
  const Element* weight;  // of slot 0
  int units;
  int channels;                 // how many there are from this thread's first one on
  int taps_left, filters_left;  // of this filter row, of this tap
  int p, q;                     // output pixel under the current tap
  int dy_left;                  // as filters_left where it exists, else 0 or less

  __device__ __forceinline__ Operands(const ConvProblem& problem,
                                      const Phase& phase,
                                      const Element* dy,
                                      const Element* weight,
                                      int first_channel,
                                      int64_t first_column)
      : problem(problem), phase(phase) {
    const int group = blockIdx.z;
    const int64_t end = min(first_column + T::kN, problem.columns);
    const Span span =
        span_of(first_column, end - 1, phase.row.pixels, phase.column.pixels, problem.lanes);
    const int r_begin = max(0, phase.row.origin + span.row_min - problem.P + 1);
    const int r_end = min(phase.row.taps, phase.row.origin + span.row_max + 1);
    units = max(0, r_end - r_begin) * phase.column.taps * ((problem.K + kDepth - 1) / kDepth);
    taps_left = phase.column.taps;
    filters_left = problem.K;

    const int64_t column = first_column + B::column();
    const Pixel pixel = pixel_of(column, phase.row.pixels, phase.column.pixels, problem.lanes);
    p = column < problem.columns ? phase.row.origin + pixel.row - r_begin : kOutside;
    q = phase.column.origin + pixel.column;
    dy_left = inside(p, q, problem.P, problem.Q) ? problem.K : 0;
    this->dy = dy + pixel.block * problem.y_block +
               (int64_t{group} * problem.K + B::row(0)) * problem.y_channel +
               (int64_t{p} * problem.Q + q) * problem.lanes + pixel.lane;

    const int channel = first_channel + A::column(0);
    const int r = phase.row.first_tap + r_begin * problem.stride;
    channels = problem.C - channel;
    this->weight = weight +
                   (((int64_t{group} * problem.C + channel) * problem.R + r) * problem.S +
                    phase.column.first_tap) *
                       problem.weight_row +
                   A::row();
  }

  __device__ __forceinline__ void next_tap() {
    filters_left = problem.K;
    dy += phase.dy.tap;
    weight += phase.weight.tap;
    --q;
    if (--taps_left == 0) {
      taps_left = phase.column.taps;
      q += phase.column.taps;
      --p;
      dy += phase.dy.row;
      weight += phase.weight.row;
    }
    dy_left = inside(p, q, problem.P, problem.Q) ? problem.K : 0;
  }

  __device__ __forceinline__ void copy(Unit<Operands>& unit, bool unit_exists) {
    if (filters_left <= 0) next_tap();
    const Element* source = weight;
#pragma unroll
    for (int i = 0; i < A::kCount; ++i, source += phase.weight_slot)
      A::copy(unit.a, i, source, unit_exists & (i * A::kColumnsPerPass < channels),
              filters_left - A::row(), problem.whole_filters());
#pragma unroll
    for (int i = 0; i < B::kCount; ++i)
      B::copy(unit.b, i, dy + int64_t{i * B::kRowsPerPass} * problem.y_channel,
              unit_exists & (B::row(i) < dy_left));
    dy += phase.dy.unit;
    weight += phase.weight.unit;
    filters_left -= kDepth;
    dy_left -= kDepth;
  }
};

template <class Sums, class Element>
__device__ __forceinline__ void store_output(const ConvProblem& problem,
                                             const Phase& phase,
                                             const Sums& sums,
                                             Element* dx,
                                             const Element* mask,
                                             int first_channel,
                                             int64_t first_column) {
  const int first = first_channel + sums.row(0), channels = problem.C - first;
  const int64_t first_offset = (int64_t{blockIdx.z} * problem.C + first) * problem.x_channel;
  Pixel pixel =
      pixel_of(first_column + sums.column(0), phase.row.pixels, phase.column.pixels, problem.lanes);
#pragma unroll
  for (int j = 0; j < Sums::kQuads; ++j) {
    if (j > 0)
      pixel.advance(sums.column(j) - sums.column(j - 1), phase.row.pixels, phase.column.pixels,
                    problem.lanes);
    if (first_column + sums.column(j) >= problem.columns) continue;
    const int h = phase.row.offset + pixel.row * problem.stride;
    const int w = phase.column.offset + pixel.column * problem.stride;
    const int64_t pixel_offset = first_offset + pixel.block * problem.x_block +
                                 (h * problem.W + w) * problem.lanes + pixel.lane;
#pragma unroll
    for (int i = 0; i < Sums::kRows; ++i) {
      const int channel = sums.row(i) - sums.row(0);
      if (channel >= channels) continue;
      const int64_t offset = pixel_offset + int64_t{channel} * problem.x_channel;
      const float4 v = sums.quad(i, j);
      store4(dx + offset, mask ? where_positive(v, load4(mask + offset)) : v);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerSm)
    conv_backward_data_kernel(const ConvProblem problem,
                              const Phase phase,
                              const typename T::Arithmetic::Element* dy,
                              const typename T::Arithmetic::Element* weight,
                              typename T::Arithmetic::Element* dx,
                              const typename T::Arithmetic::Element* mask) {
  begin_kernel();
  auto& ring = shared_storage<Ring<Operands<T>>>();
  const int first_channel = blockIdx.y * T::kM;
  const int64_t first_column = int64_t{blockIdx.x} * T::kN;
  typename T::Sums sums;
  Operands<T> operands(problem, phase, dy, weight, first_channel, first_column);
  multiply(sums, ring, operands, operands.units);
  sums.finish();
  store_output(problem, phase, sums, dx, mask, first_channel, first_column);
}

struct Arguments {
  const void* dy;
  const void* weight;
  void* dx;
  const void* mask;  // null: none
  Stream stream;
};

template <class T>
void run(const ConvShape& shape, const Arguments& arguments) {
  using Element = typename T::Arithmetic::Element;
  ConvProblem problem = conv_problem(shape, T::Arithmetic::kPrecision);
  for (int h = 0; h < problem.stride && h < problem.H; ++h)
    for (int w = 0; w < problem.stride && w < problem.W; ++w) {
      const Phase phase =
          phase_of(problem, T::Arithmetic::kDepth, Operands<T>::A::kColumnsPerPass, h, w);
      problem.columns = shape.N * phase.row.pixels * phase.column.pixels;
      const Dim3 grid = tile_grid("conv_backward_data", ceil_div(problem.columns, T::kN),
                                  ceil_div(problem.C, T::kM), problem.groups);
      launch(conv_backward_data_kernel<T>, grid, Dim3(T::kThreads), sizeof(Ring<Operands<T>>),
             arguments.stream, problem, phase, static_cast<const Element*>(arguments.dy),
             static_cast<const Element*>(arguments.weight), static_cast<Element*>(arguments.dx),
             static_cast<const Element*>(arguments.mask));
    }
}

// Stride 1: dx is a convolution of dy with flipped filters, whose rims reach R - 1 pixels beyond.
template <class T>
void run_wgmma(const ConvShape& s, const Arguments& a) {
  const int64_t blocks = s.N / s.lanes;
  MapsCall call{};
  call.in = image_activation(a.dy, s.K, s.P, s.Q, blocks);
  call.out = image_activation(a.dx, s.C, s.H, s.W, blocks);
  call.weight = a.weight, call.mask = a.mask;
  call.R = s.R, call.S = s.S, call.stride = 1, call.groups = s.groups, call.parts = 1;
  call.pad_top = s.R - 1 - s.pad_top, call.pad_left = s.S - 1 - s.pad_left;
  launch_maps<T, SharedWeights>("conv_backward_data", call, a.stream);
}

template <class T>
void run_wgmma_tf32(const ConvShape& s, const Arguments& a) {
  const int64_t blocks = s.N / s.lanes;
  launch_maps_tf32<T>("conv_backward_data", s, float_activation(a.dy, s.K, s.P, s.Q, blocks),
                      float_activation(a.dx, s.C, s.H, s.W, blocks), a.weight,
                      {nullptr, static_cast<const float*>(a.mask), static_cast<float*>(a.dx)},
                      false, a.stream);
}

using Row = Variant<ConvShape, Arguments>;

template <class T>
constexpr Row row(const char* name, const char* when, bool (*takes)(const ConvShape&)) {
  return variant<T>(name, when, takes, run<T>);
}

int64_t channels(const ConvShape& s) { return s.C / s.groups; }

bool any(const ConvShape&) { return true; }
bool few(const ConvShape& s) { return channels(s) <= 32; }
bool half_filled(const ConvShape& s) { return half_filled_tiles(channels(s)); }

// On Hopper: stride 1, whole blocks of 64 images, and filters that fill most of their chunks.
template <class T, bool (*kRule)(const ConvShape&)>
bool takes_wgmma(const ConvShape& s) {
  return s.stride == 1 && s.lanes == 64 && T::takes(1, s.S, s.K / s.groups, s.groups, s.W) &&
         kRule(s);
}

template <int kMaps, int kPixels, bool (*kRule)(const ConvShape&)>
constexpr Row wgmma(const char* name, const char* when) {
  using T = MapsTile<kMaps, kPixels, 32, false>;
  return {name, Precision::bf16,       90,           64 * kPixels,       kMaps,
          when, takes_wgmma<T, kRule>, run_wgmma<T>, takes_wgmma<T, any>};
}

template <class T, bool (*kRule)(const ConvShape&)>
bool takes_wgmma_tf32(const ConvShape& s) {
  return T::takes(s, s.K / s.groups, s.W) && kRule(s);
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

bool up_to_48(const ConvShape& s) { return channels(s) <= 48; }
bool up_to_64(const ConvShape& s) { return channels(s) <= 64; }
bool times_192(const ConvShape& s) { return channels(s) % 192 == 0; }

const Row kVariants[] = {
    wgmma<48, 8, up_to_48>("wgmma-512x48", "64 lanes, stride 1, C/g <= 48"),
    wgmma<64, 4, up_to_64>("wgmma-256x64", "64 lanes, stride 1, C/g <= 64"),
    wgmma<192, 3, times_192>("wgmma-192x192", "64 lanes, stride 1, C/g a multiple of 192"),
    wgmma<128, 3, any>("wgmma-192x128", "64 lanes, stride 1"),

    wgmma_tf32<MapsTileTf32<48, 8, 2, 5, false>, up_to_48>("wgmma_tf32-512x48x5",
                                                           "64 lanes, stride 1, S = 5, C/g <= 48"),
    wgmma_tf32<MapsTileTf32<128, 4, 2, 5, false>, any>("wgmma_tf32-256x128x5",
                                                       "64 lanes, stride 1, S = 5"),
    wgmma_tf32<MapsTileTf32<192, 3, 3, 3, false>, times_192>(
        "wgmma_tf32-192x192x3", "64 lanes, stride 1, S = 3, C/g a multiple of 192"),
    wgmma_tf32<MapsTileTf32<128, 3, 3, 3, false>, any>("wgmma_tf32-192x128x3",
                                                       "64 lanes, stride 1, S = 3"),

    row<SimtTile<16, 256, 4>>(
        "fp32-16x256", "C/g <= 16", [](const ConvShape& s) { return channels(s) <= 16; }),
    row<SimtTile<48, 256>>("fp32-48x256",
                           "C/g <= 48 or 65..96",
                           [](const ConvShape& s) {
                             return channels(s) <= 48 || (channels(s) > 64 && channels(s) <= 96);
                           }),
    row<SimtTile<64, 128>>("fp32-64x128", "any", any),

    row<MmaTile<Tf32, 32, 128, 32, 32>>("tf32-32x128", "C/g <= 32", few),
    row<MmaTile<Tf32, 64, 128, 32, 64>>("tf32-64x128", "C/g <= 64 or 129..192", half_filled),
    row<MmaTile<Tf32, 128, 128, 64, 64>>("tf32-128x128", "any", any),

    row<MmaTile<Bf16, 32, 128, 32, 32>>("bf16-32x128", "C/g <= 32", few),
    row<MmaTile<Bf16, 64, 128, 32, 64>>("bf16-64x128", "C/g <= 64 or 129..192", half_filled),
    row<MmaTile<Bf16, 128, 128, 64, 64>>("bf16-128x128", "any", any),
};

}  // namespace

void conv_backward_data(const ConvShape& shape,
                        Precision precision,
                        const void* dy,
                        const void* weight,
                        void* dx,
                        const void* mask,
                        Stream stream) {
  check("conv_backward_data", shape);
  choose("conv_backward_data", kVariants, shape, precision)
      .run(shape, Arguments{dy, weight, dx, mask, stream});
}

std::string conv_backward_data_variant(const ConvShape& shape, Precision precision) {
  check("conv_backward_data", shape);
  return choose("conv_backward_data", kVariants, shape, precision).name;
}

std::vector<VariantRow> conv_backward_data_variants() {
  return listed("conv_backward_data", kVariants);
}

}  // namespace convnet
