// Convolution, gradient with respect to filters and biases.
//
// What       dweight[k,c,r,s] = sum over n, p, q of dy[n,k,p,q]
//            x[n,c,p*stride-pad+r,q*stride-pad+s], x zero outside the image; dbias[k] = sum over n,
//            p, q of dy[n,k,p,q]. An implicit GEMM: GEMM-M = (c, r, s), GEMM-N = filters of a
//            group, reduction over (block, p, q, lane), in which both operands are contiguous. (On
//            Hopper: tile/wgmma_filter.cuh in bf16, tile/wgmma_filter_tf32.cuh in tf32.)
// Tensors    dy [N/L][K][P][Q][L], x [N/L][C][H][W][L] by precision; dweight [g][C/g][R][S][K/g],
//            dbias [K] and sums float32. workspace, float32: [parts] times dweight and [N/L] times
//            dbias (on Hopper: [parts] times both), rows padded to 4 floats.
// Work       the reduction is cut into parts of about kPartColumns (pixel, lane) columns, whose
//            number depends on N, P and Q alone. One block per output tile and part, blockIdx =
//            (c r s, part and filters, group); kVariants chooses the tile by the number of filters.
//            Another kernel adds the parts in ascending order. dbias: tile/sums.cuh.
// Shared     a ring of both operands (tile/gemm_tile.cuh), 74 KiB for 128 x 128 sums in fp32, 60
//            KiB in tf32, 72 KiB in bf16.
// Barriers   one per stage (tile/gemm_tile.cuh).
// Needs      as conv_forward; lanes in eights, so that a thread's share of a unit never leaves a
//            pixel.
// Cost       2 N K P Q C/g R S FLOP, the bound: FFMA issue in fp32, tensor cores else. A 128 x 128
//            tile reads 256 rows of 32 bytes per unit of 8 (fp32) or 16 (bf16) columns, of 64 bytes
//            per unit of 16 in tf32. The parts add 8 bytes per weight and part: 2 % of the time of
//            a 5x5 layer at N = 128 in fp32.
#include "conv_backward_filter.hpp"

#include <algorithm>
#include <climits>

#include "arch/arch.cuh"
#include "tile/conv_problem.cuh"
#include "tile/epilogue.cuh"
#include "tile/loaders.cuh"
#include "tile/simt.cuh"
#include "tile/sums.cuh"
#include "tile/tensor_core.cuh"
#include "tile/variants.cuh"
#include "tile/wgmma_filter.cuh"
#include "tile/wgmma_filter_tf32.cuh"
#include "tile/wgmma_window.cuh"

namespace convnet {
namespace {

// 2432 columns per part give the five layers of the 2012 network at N = 128 1.0, 1.8, 1.9 or 3.0
// waves of 264 blocks (132 SMs with two blocks each): at least nine tenths of the slots are busy.
// Larger batches get longer parts, not more, so that the workspace stays bounded: 48 MB for the
// 256 x 48 x 5 x 5 filters of a layer at 27 x 27.
constexpr int64_t kPartColumns = 2432, kPartImages = 128, kMostParts = 256;

// Columns of a part in whole stages of any arithmetic, so that they are all cut alike.
constexpr int64_t kGrain = 32;

struct Split {
  int64_t parts, columns_per_part;
};

Split split_of(const ConvShape& shape) {
  const int64_t pixels = shape.P * shape.Q, columns = shape.N * pixels;
  const int64_t wanted = ceil_div(std::min(shape.N, kPartImages) * pixels, kPartColumns);
  const int64_t columns_per_part =
      round_up(ceil_div(columns, std::min(wanted, kMostParts)), kGrain);
  return Split{ceil_div(columns, columns_per_part), columns_per_part};
}

struct Reduction {
  int64_t columns_per_part;
  int64_t part_stride;  // floats from one part's dweight to the next
  int filter_tiles;     // tiles of filters in a part
  int h_begin, h_end, w_begin,
      w_end;        // input pixel under tap (0, 0): of the first window, past the last window
  int64_t x_pixel;  // moves of x: to the next pixel,
  int64_t x_row, x_next_block;  // on top of that to the next row, and to the next image block
  int64_t dy_next_block;        // move of dy to the next image block
  int64_t dy_slot;              // from one slot's dy to that of a thread's next one
};

Reduction reduction_of(const ConvProblem& p,
                       const Split& split,
                       int64_t part_stride,
                       int64_t filter_tiles,
                       int64_t slot_filters) {
  Reduction r{};
  r.columns_per_part = split.columns_per_part, r.part_stride = part_stride;
  r.filter_tiles = int(filter_tiles);
  r.h_begin = -p.pad_top, r.h_end = p.P * p.stride - p.pad_top;
  r.w_begin = -p.pad_left, r.w_end = p.Q * p.stride - p.pad_left;
  r.x_pixel = int64_t{p.stride - 1} * p.lanes;  // a pixel's lanes have been passed already
  r.x_row = int64_t{p.W - p.Q} * p.stride * p.lanes;
  r.x_next_block = p.x_block - int64_t{p.P} * p.stride * p.W * p.lanes;
  r.dy_next_block = p.y_block - p.y_channel;
  r.dy_slot = slot_filters * p.y_channel;
  return r;
}

// All slots of a thread belong to the same reduction rows: columns (pixel, lane) from `left` before
// the end of the part on, which lie in one pixel.
template <class T>
struct Operands {
  using Element = typename T::Arithmetic::Element;
  using A = DepthSlots<typename T::Arithmetic, T::kM, T::kThreads>;
  using B = DepthSlots<typename T::Arithmetic, T::kN, T::kThreads>;
  static constexpr int kDepth = T::Arithmetic::kDepth;
  const ConvProblem& problem;
  const Reduction& reduction;
  const Element* dy;  // of slot 0
  const Element* x;   // of slot 0
  int left;
  int h, w;            // input pixel under tap (0, 0)
  int lanes_left;      // of this pixel
  int filters;         // how many there are from this thread's first one on
  int tap[A::kCount];  // offset of the (c, r, s) of other slots from that of slot 0
  int r[A::kCount], s[A::kCount];
  int hidden[A::kCount];  // 0 where the pixel of a slot's tap exists, else more than `left`

  __device__ __forceinline__ Operands(const ConvProblem& p,
                                      const Reduction& reduction,
                                      const Element* dy,
                                      const Element* x,
                                      int group,
                                      int first_row,
                                      int first_filter,
                                      int64_t first_column,
                                      int columns)
      : problem(p), reduction(reduction), left(columns - A::eight()) {
    const Pixel pixel = pixel_of(first_column + A::eight(), p.P, p.Q, p.lanes);
    h = pixel.row * p.stride - p.pad_top;
    w = pixel.column * p.stride - p.pad_left;
    lanes_left = p.lanes - pixel.lane;
    const int filter = first_filter + B::column(0);
    filters = p.K - filter;
    const int lane = pixel.lane + A::row() - A::eight();
    this->dy = dy + pixel.block * p.y_block + (int64_t{group} * p.K + filter) * p.y_channel +
               (pixel.row * p.Q + pixel.column) * p.lanes + lane;
    this->x = x + pixel.block * p.x_block + int64_t{group} * p.C * p.x_channel +
              (int64_t{h} * p.W + w) * p.lanes + lane;
#pragma unroll
    for (int i = 0; i < A::kCount; ++i) {
      // Rows beyond the last repeat it; nobody stores them.
      const int row = min(first_row + A::column(i), p.C * p.R * p.S - 1);
      s[i] = row % p.S;
      r[i] = row / p.S % p.R;
      tap[i] = row / p.S / p.R * p.x_channel + (r[i] * p.W + s[i]) * p.lanes;
    }
    this->x += tap[0];
#pragma unroll
    for (int i = A::kCount - 1; i >= 0; --i) tap[i] -= tap[0];
    find_taps();
  }

  __device__ __forceinline__ void find_taps() {
#pragma unroll
    for (int i = 0; i < A::kCount; ++i)
      hidden[i] = inside(h + r[i], w + s[i], problem.H, problem.W) ? 0 : INT_MAX;
  }

  __device__ __forceinline__ void next_pixel() {
    const ConvProblem& p = problem;
    lanes_left += p.lanes;
    w += p.stride;
    x += reduction.x_pixel;
    if (w != reduction.w_end) return;
    w = reduction.w_begin;
    h += p.stride;
    x += reduction.x_row;
    if (h != reduction.h_end) return;
    h = reduction.h_begin;
    x += reduction.x_next_block;
    dy += reduction.dy_next_block;
  }

  // Units behind the end lie behind the last column, too.
  __device__ __forceinline__ void copy(Unit<Operands>& unit, bool) {
    if (lanes_left <= 0) {
      do next_pixel();
      while (lanes_left <= 0);
      find_taps();
    }
#pragma unroll
    for (int i = 0; i < A::kCount; ++i) A::copy(unit.a, i, x + tap[i], left > hidden[i]);
    const Element* source = dy;
#pragma unroll
    for (int i = 0; i < B::kCount; ++i, source += reduction.dy_slot)
      B::copy(unit.b, i, source, (left > 0) & (i * B::kColumnsPerPass < filters));
    dy += kDepth;
    x += kDepth;
    lanes_left -= kDepth;
    left -= kDepth;
  }
};

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerSm)
    conv_backward_filter_kernel(const ConvProblem problem,
                                const Reduction reduction,
                                const typename T::Arithmetic::Element* dy,
                                const typename T::Arithmetic::Element* x,
                                float* partial) {
  begin_kernel();
  auto& ring = shared_storage<Ring<Operands<T>>>();
  const int group = blockIdx.z;
  const int part = blockIdx.y / unsigned(reduction.filter_tiles);
  const int first_filter = blockIdx.y % unsigned(reduction.filter_tiles) * T::kN;
  const int first_row = blockIdx.x * T::kM;
  const int64_t first_column = part * reduction.columns_per_part;
  const int columns =
      static_cast<int>(min(reduction.columns_per_part, problem.columns - first_column));
  const int rows = problem.C * problem.R * problem.S;

  Operands<T> operands(problem, reduction, dy, x, group, first_row, first_filter, first_column,
                       columns);
  typename T::Sums sums;
  multiply(sums, ring, operands, (columns + T::Arithmetic::kDepth - 1) / T::Arithmetic::kDepth);
  sums.finish();
  partial += part * reduction.part_stride + int64_t{group} * rows * problem.K;
  store_matrix(sums, partial, first_row, rows, first_filter, problem.K);
}

struct Arguments {
  const void* dy;
  const void* x;
  float* dweight;
  float* dbias;
  float* workspace;
  Stream stream;
};

void require_workspace(const Arguments& a, int64_t parts) {
  require(a.workspace || (parts == 1 && !a.dbias),
          "conv_backward_filter: sums of parts and dbias need a workspace, got a null address");
}

template <class T>
void run(const ConvShape& shape, const Arguments& arguments) {
  using Element = typename T::Arithmetic::Element;
  static_assert(kGrain % (T::Arithmetic::kDepth * T::Arithmetic::kUnits) == 0,
                "parts must be whole stages");
  ConvProblem problem = conv_problem(shape, T::Arithmetic::kPrecision);
  problem.columns = shape.N * shape.P * shape.Q;
  const Element* dy = static_cast<const Element*>(arguments.dy);
  const int64_t rows = int64_t{problem.C} * problem.R * problem.S, weights = shape.K * rows;
  const Split split = split_of(shape);
  require_workspace(arguments, split.parts);
  const int64_t filter_tiles = ceil_div(problem.K, T::kN);
  const Reduction reduction = reduction_of(problem, split, round_up(weights, 4), filter_tiles,
                                           Operands<T>::B::kColumnsPerPass);
  const Dim3 grid = tile_grid("conv_backward_filter", ceil_div(rows, T::kM),
                              split.parts * filter_tiles, shape.groups);
  launch(conv_backward_filter_kernel<T>, grid, Dim3(T::kThreads), sizeof(Ring<Operands<T>>),
         arguments.stream, problem, reduction, dy, static_cast<const Element*>(arguments.x),
         split.parts > 1 ? arguments.workspace : arguments.dweight);
  Parts dweight{}, dbias{};
  if (split.parts > 1)
    dweight = {weights, int(split.parts), reduction.part_stride, arguments.workspace,
               arguments.dweight};
  if (arguments.dbias)
    dbias = sum_rows(shape.N / shape.lanes, shape.K, problem.y_channel, dy, arguments.dbias,
                     arguments.workspace + dweight.parts * dweight.stride, arguments.stream);
  sum_gradients(dweight, dbias, arguments.stream);
}

// Of both gradients, in floats.
int64_t part_stride(const ConvShape& s) {
  return round_up(s.K * (s.C / s.groups) * s.R * s.S, 4) + round_up(s.K, 4);
}

constexpr const char* kOp = "conv_backward_filter";

template <class T>
FilterCall filter_call(const ConvShape& s, const Arguments& a) {
  const int64_t blocks = s.N / s.lanes;
  const auto activation = T::kPrecision == Precision::tf32 ? float_activation : image_activation;
  FilterCall call{};
  call.dy = activation(a.dy, s.K, s.P, s.Q, blocks);
  call.x = activation(a.x, s.C, s.H, s.W, blocks);
  call.R = s.R, call.S = s.S, call.stride = s.stride, call.groups = s.groups;
  call.pad_top = s.pad_top, call.pad_left = s.pad_left;
  call.dweight = a.dweight, call.dbias = a.dbias;
  return call;
}

template <class T>
int64_t parts_of(const ConvShape& s) {
  return chunk_pixels_of<T>(s.stride, s.Q) > 0 ? filter_problem<T>(kOp, filter_call<T>(s, {})).parts
                                               : 1;
}

template <class T>
void run_wgmma(const ConvShape& s, const Arguments& a) {
  FilterCall call = filter_call<T>(s, a);
  const int parts = int(parts_of<T>(s));
  const int64_t weights = s.K * (s.C / s.groups) * s.R * s.S;
  require_workspace(a, parts);
  if (parts > 1) {
    call.dweight = a.workspace;
    if (a.dbias) call.dbias = a.workspace + round_up(weights, 4);
    call.part_stride = part_stride(s);
  }
  if constexpr (T::kPrecision == Precision::tf32)
    launch_filter_tf32<T>(kOp, call, a.stream);
  else
    launch_filter<T>(kOp, call, a.stream);
  if (parts > 1)
    sum_gradients({weights, parts, call.part_stride, call.dweight, a.dweight},
                  {a.dbias ? s.K : 0, parts, call.part_stride, call.dbias, a.dbias}, a.stream);
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

// On Hopper: whole blocks of 64 images, and channels that fill most of a tile.
template <class T, bool (*kRule)(const ConvShape&)>
bool takes_wgmma(const ConvShape& s) {
  return s.lanes == 64 && chunk_pixels_of<T>(s.stride, s.Q) > 0 && kRule(s);
}

template <class T, bool (*kRule)(const ConvShape&)>
constexpr Row wgmma(const char* name, const char* when) {
  return {name,
          T::kPrecision,
          90,
          T::kFilters,
          T::kTapRows * T::kTaps * T::kChannels,
          when,
          takes_wgmma<T, kRule>,
          run_wgmma<T>,
          takes_wgmma<T, any>};
}

// The same, and several taps.
template <class T, bool (*kRule)(const ConvShape&)>
bool takes_wgmma_tf32(const ConvShape& s) {
  const int64_t channels = s.C / s.groups;
  return takes_wgmma<T, kRule>(s) && s.S >= 3 &&
         3 * channels >= 2 * round_up(channels, T::kChannels);
}

template <class T, bool (*kRule)(const ConvShape&)>
constexpr Row wgmma_tf32(const char* name, const char* when) {
  Row row = wgmma<T, kRule>(name, when);
  row.takes = takes_wgmma_tf32<T, kRule>;
  return row;
}

using FiveTaps = FilterTile<2, 5, 48>;
using NineTaps = WindowTile<3, 3, 48, 96>;
using ThreeTaps48 = FilterTile<2, 3, 48>;
using ThreeTaps192 = FilterTile<3, 3, 64>;
using ThreeTaps = FilterTile<2, 3, 64>;
using OneTap = FilterTile<2, 1, 128>;

using FiveTapsTf32 = FilterTileTf32<2, 5, 48>;
using ThreeTaps48Tf32 = FilterTileTf32<2, 3, 48>;
using ThreeTaps192Tf32 = FilterTileTf32<3, 3, 64>;
using ThreeTapsTf32 = FilterTileTf32<2, 3, 64>;

int64_t channels(const ConvShape& s) { return s.C / s.groups; }

bool five_taps(const ConvShape& s) { return s.S >= 4 && channels(s) % 48 == 0; }
bool one_tap(const ConvShape& s) { return s.S == 1; }
bool nine_taps(const ConvShape& s) {
  return s.R <= 3 && s.S <= 3 && channels(s) <= 48 && filters(s) <= 96;
}
bool up_to_48(const ConvShape& s) { return channels(s) <= 48; }
bool times_192(const ConvShape& s) { return filters(s) % 192 == 0; }

const Row kVariants[] = {
    wgmma<FiveTaps, five_taps>("wgmma-128x5x48", "64 lanes, S >= 4, C/g a multiple of 48"),
    wgmma<OneTap, one_tap>("wgmma-128x1x128", "64 lanes, S = 1"),
    wgmma<NineTaps, nine_taps>("wgmma-3x3x48x96", "64 lanes, R and S <= 3, C/g <= 48, K/g <= 96"),
    wgmma<ThreeTaps48, up_to_48>("wgmma-128x3x48", "64 lanes, C/g <= 48"),
    wgmma<ThreeTaps192, times_192>("wgmma-192x3x64", "64 lanes, K/g a multiple of 192"),
    wgmma<ThreeTaps, any>("wgmma-128x3x64", "64 lanes"),

    wgmma_tf32<FiveTapsTf32, five_taps>("wgmma_tf32-128x5x48",
                                        "64 lanes, S >= 4, C/g a multiple of 48"),
    wgmma_tf32<ThreeTaps48Tf32, up_to_48>("wgmma_tf32-128x3x48", "64 lanes, S >= 3, C/g 32..48"),
    wgmma_tf32<ThreeTaps192Tf32, times_192>("wgmma_tf32-192x3x64",
                                            "64 lanes, S >= 3, K/g a multiple of 192"),
    wgmma_tf32<ThreeTapsTf32, any>("wgmma_tf32-128x3x64", "64 lanes, S >= 3"),

    row<SimtTile<128, 16, 4>>(
        "fp32-128x16", "K/g <= 16", [](const ConvShape& s) { return filters(s) <= 16; }),
    row<SimtTile<128, 32, 4>>("fp32-128x32", "K/g <= 32", few),
    row<SimtTile<128, 64>>("fp32-128x64", "K/g <= 64 or 129..192", half_filled),
    row<SimtTile<128, 96>>("fp32-128x96",
                           "K/g in 65..96",
                           [](const ConvShape& s) { return filters(s) > 64 && filters(s) <= 96; }),
    row<SimtTile<128, 128>>("fp32-128x128", "any", any),

    row<MmaTile<Tf32, 128, 32, 32, 32>>("tf32-128x32", "K/g <= 32", few),
    row<MmaTile<Tf32, 128, 64, 64, 32>>("tf32-128x64", "K/g <= 64 or 129..192", half_filled),
    row<MmaTile<Tf32, 128, 128, 64, 64>>("tf32-128x128", "any", any),

    row<MmaTile<Bf16, 128, 32, 32, 32>>("bf16-128x32", "K/g <= 32", few),
    row<MmaTile<Bf16, 128, 64, 64, 32>>("bf16-128x64", "K/g <= 64 or 129..192", half_filled),
    row<MmaTile<Bf16, 128, 128, 64, 64>>("bf16-128x128", "any", any),
};

}  // namespace

int64_t conv_backward_filter_workspace(const ConvShape& shape, Precision precision) {
  check("conv_backward_filter_workspace", shape);
  const int64_t weights = shape.K * (shape.C / shape.groups) * shape.R * shape.S;
  const int64_t parts = split_of(shape).parts;
  int64_t floats = sum_rows_workspace(shape.N / shape.lanes, shape.K) +
                   (parts > 1 ? parts * round_up(weights, 4) : 0);
  // Of every row, so that any may be forced.
  int64_t most = 0;
  if (precision == Precision::bf16 && shape.lanes == 64)
    most = std::max({parts_of<FiveTaps>(shape), parts_of<NineTaps>(shape),
                     parts_of<ThreeTaps48>(shape), parts_of<ThreeTaps192>(shape),
                     parts_of<ThreeTaps>(shape), parts_of<OneTap>(shape)});
  if (precision == Precision::tf32 && shape.lanes == 64)
    most = std::max({parts_of<FiveTapsTf32>(shape), parts_of<ThreeTaps48Tf32>(shape),
                     parts_of<ThreeTaps192Tf32>(shape), parts_of<ThreeTapsTf32>(shape)});
  floats = std::max(floats, most * part_stride(shape));
  return floats * int64_t{sizeof(float)};
}

void conv_backward_filter(const ConvShape& shape,
                          Precision precision,
                          const void* dy,
                          const void* x,
                          float* dweight,
                          float* dbias,
                          float* workspace,
                          Stream stream) {
  check("conv_backward_filter", shape);
  choose("conv_backward_filter", kVariants, shape, precision)
      .run(shape, Arguments{dy, x, dweight, dbias, workspace, stream});
}

std::string conv_backward_filter_variant(const ConvShape& shape, Precision precision) {
  check("conv_backward_filter", shape);
  return choose("conv_backward_filter", kVariants, shape, precision).name;
}

std::vector<VariantRow> conv_backward_filter_variants() {
  return listed("conv_backward_filter", kVariants);
}

}  // namespace convnet
