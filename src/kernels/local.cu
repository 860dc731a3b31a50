// Local (unshared) convolution: forward and both gradients.
//
// What       forward y[n,k,p,q] = bias[k,p,q] + sum over c, r, s of weight[p,q,k,c,r,s]
//            x[n,c,p*stride-pad+r,q*stride-pad+s], then ReLU where asked; backward data dx[n,c,h,w]
//            = sum over the windows (p, q) that hold (h, w) as their tap (r, s), and over k, of
//            weight[p,q,k,c,r,s] dy[n,k,p,q], with a mask 0 where mask[n,c,h,w] > 0 does not hold;
//            backward filter dweight[p,q,k,c,r,s] = sum over n of x[...] dy[n,k,p,q], dbias[k,p,q] =
//            sum over n of dy[n,k,p,q]. Zero outside the image, grouped.
// Tensors    x, dx, mask [N/L][C][H][W][L], weight [P][Q][g][C/g][R][S][K/g] (bf16: rows padded to
//            K8), y, dy [N/L][K][P][Q][L] by precision; bias, dbias [K][P][Q], dweight and sums
//            float32. A product of its own for every pixel:
//
//            pass             pixel   GEMM-M    GEMM-N   reduction           a              b
//            forward          (p, q)  K/g       n        taps inside (c,r,s) weight, rows   x, rows
//            backward data    (h, w)  C/g       n        windows (p, q), k   weight, depth  dy, rows
//            backward filter  (p, q)  C/g R S   K/g      n                   x, depth       dy, depth
//
//            Taps outside of the image are left out of forward, windows that do not hold the pixel
//            of backward data; dweight is 0 for them.
// Work       one block per pixel and output tile: blockIdx = (tiles within a pixel, then pixels,
//            other tiles, group), so that neighbours read the same weights. The tile is chosen by the
//            number of filters, or channels.
// Shared     a ring of both operands (tile/gemm_tile.cuh).
// Barriers   one per stage (tile/gemm_tile.cuh).
// Needs      as conv_forward. float32 weights with K/g not a multiple of 4 are copied and written 4
//            bytes at a time; K/g not a multiple of a unit (8 in fp32, 16 in tf32 and bf16) leaves
//            reduction rows of each window empty in backward data.
// Cost       2 N K P Q C/g R S FLOP and 4 P Q K C/g R S bytes of weights (bf16: 2), N / 2 FLOP per
//            byte (bf16: N): bound by memory for few images, as a linear layer is.
#include "local.hpp"

#include "arch/arch.cuh"
#include "tile/conv_problem.cuh"
#include "tile/epilogue.cuh"
#include "tile/image_sums.cuh"
#include "tile/loaders.cuh"
#include "tile/simt.cuh"
#include "tile/tensor_core.cuh"
#include "tile/variants.cuh"

namespace convnet {
namespace {

// Where a block works: a pixel of a plane, and one of the tiles within it.
struct Spot {
  int row, column, tile;
};

__device__ __forceinline__ Spot spot_of(int tiles, int columns) {
  const int pixel = blockIdx.x / unsigned(tiles);
  return Spot{pixel / columns, pixel % columns, int(blockIdx.x % unsigned(tiles))};
}

// Values of all weights of a group at a pixel, and where those of this block's group begin.
__device__ __forceinline__ int64_t weights_at(const ConvProblem& p, int row, int column) {
  const int64_t place = (int64_t{row} * p.Q + column) * p.groups + blockIdx.z;
  return place * p.C * p.R * p.S * p.weight_row;
}

// ---- forward ----

// A reduction row.
struct Term {
  int c, r, s;
};

// The taps of a window that lie inside the image, for each channel; terms are numbered in the order
// (c, r, s).
struct Taps {
  int r, s;           // the first
  int rows, columns;  // how many; 1 where there are none

  __device__ __forceinline__ Term term(int index) const {
    return Term{index / columns / rows, index / columns % rows, index % columns};
  }
  __device__ __forceinline__ void advance(Term& term, const Term& by) const {
    term.s += by.s;
    if (term.s >= columns) term.s -= columns, ++term.r;
    term.r += by.r;
    if (term.r >= rows) term.r -= rows, ++term.c;
    term.c += by.c;
  }
};

template <class T>
struct ForwardOperands {
  using Element = typename T::Arithmetic::Element;
  using A = RowSlots<typename T::Arithmetic, T::kM, T::kThreads>;
  using B = RowSlots<typename T::Arithmetic, T::kN, T::kThreads>;
  static constexpr int kDepth = T::Arithmetic::kDepth;
  const ConvProblem& problem;
  const Element* x;       // of this thread's images, channel 0 of the group, under the first tap
  const Element* weight;  // of this thread's filters, channel 0, the first tap
  int units;
  int filters;  // how many of this thread's filters exist (also 0, or more than its slot)
  bool exists;  // whether this thread's images do
  Taps taps;
  Term step, weight_term[A::kCount], x_term[B::kCount];

  __device__ __forceinline__ ForwardOperands(const ConvProblem& p,
                                             const Element* x,
                                             const Element* weight,
                                             const Spot& spot,
                                             int first_filter,
                                             int64_t first_image)
      : problem(p) {
    const int h = spot.row * p.stride - p.pad_top, w = spot.column * p.stride - p.pad_left;
    const int r = max(0, -h), s = max(0, -w);
    const int rows = min(p.R, p.H - h) - r, columns = min(p.S, p.W - w) - s;
    const bool any = rows > 0 && columns > 0;
    taps = Taps{r, s, any ? rows : 1, any ? columns : 1};
    units = any ? (p.C * rows * columns + kDepth - 1) / kDepth : 0;
    const int filter = first_filter + A::column();
    filters = p.K - filter;
    this->weight = weight + weights_at(p, spot.row, spot.column) +
                   (int64_t{r} * p.S + s) * p.weight_row + filter;
    const int64_t image = first_image + B::column();
    exists = image < p.columns;
    this->x = x + image / p.lanes * p.x_block + int64_t{blockIdx.z} * p.C * p.x_channel +
              (int64_t{h + r} * p.W + w + s) * p.lanes + image % p.lanes;
    step = taps.term(kDepth);
#pragma unroll
    for (int i = 0; i < A::kCount; ++i) weight_term[i] = taps.term(A::row(i));
#pragma unroll
    for (int i = 0; i < B::kCount; ++i) x_term[i] = taps.term(B::row(i));
  }

  // Units behind the end lie behind the last channel, too.
  __device__ __forceinline__ void copy(Unit<ForwardOperands>& unit, bool) {
    const ConvProblem& p = problem;
#pragma unroll
    for (int i = 0; i < A::kCount; ++i) {
      const Term& t = weight_term[i];
      A::copy(unit.a, i, weight + ((int64_t{t.c} * p.R + t.r) * p.S + t.s) * p.weight_row,
              t.c < p.C, filters, p.whole_filters());
      taps.advance(weight_term[i], step);
    }
#pragma unroll
    for (int i = 0; i < B::kCount; ++i) {
      const Term& t = x_term[i];
      B::copy(unit.b, i, x + ((int64_t{t.c} * p.H + t.r) * p.W + t.s) * p.lanes,
              exists && t.c < p.C);
      taps.advance(x_term[i], step);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerSm)
    local_forward_kernel(const ConvProblem problem,
                         int tiles,
                         const typename T::Arithmetic::Element* x,
                         const typename T::Arithmetic::Element* weight,
                         const float* bias,
                         bool relu,
                         typename T::Arithmetic::Element* y) {
  begin_kernel();
  auto& ring = shared_storage<Ring<ForwardOperands<T>>>();
  const Spot spot = spot_of(tiles, problem.Q);
  const int first_filter = blockIdx.y * T::kM;
  const int64_t first_image = int64_t{spot.tile} * T::kN;
  typename T::Sums sums;
  ForwardOperands<T> operands(problem, x, weight, spot, first_filter, first_image);
  multiply(sums, ring, operands, operands.units);
  sums.finish();

  const int pixel = spot.row * problem.Q + spot.column, pixels = problem.P * problem.Q;
  Place place = place_of(first_image + sums.column(0), problem.lanes);
#pragma unroll
  for (int j = 0; j < T::Sums::kQuads; ++j) {
    if (j > 0) place.advance(sums.column(j) - sums.column(j - 1), problem.lanes);
    if (first_image + sums.column(j) >= problem.columns) continue;
#pragma unroll
    for (int i = 0; i < T::Sums::kRows; ++i) {
      const int filter = first_filter + sums.row(i);
      if (filter >= problem.K) continue;
      const int64_t at = (int64_t{blockIdx.z} * problem.K + filter) * pixels + pixel;
      float4 v = sums.quad(i, j);
      if (bias) v = add(v, bias[at]);
      store4(y + place.block * problem.y_block + at * problem.lanes + place.rest,
             relu ? rectified(v) : v);
    }
  }
}

// ---- backward data ----

// The windows that hold a pixel, along one axis.
struct Windows {
  int begin, end;
};

__device__ __forceinline__ Windows windows_of(int place, int filter, int stride, int many) {
  const int before = place - filter;  // `place` counts from the first pixel of padding
  return Windows{before < 0 ? 0 : before / stride + 1, min(many, place / stride + 1)};
}

template <class T>
struct DataOperands {
  using Element = typename T::Arithmetic::Element;
  using A = DepthSlots<typename T::Arithmetic, T::kM, T::kThreads>;
  using B = RowSlots<typename T::Arithmetic, T::kN, T::kThreads>;
  static constexpr int kDepth = T::Arithmetic::kDepth;
  const ConvProblem& problem;
  const Element* weights;
  int units;
  int row, column;  // of the pixel, counted from the first pixel of padding
  Windows rows, columns;
  int p, q;                // the current window
  int filters_left;        // of it
  int channel;             // this thread's first one
  int missing;             // 0; where this thread's images do not exist, as many as all filters
  const Element* dy_base;  // of this thread's images and its first filter, pixel (0, 0)
  const Element* dy;       // of slot 0, in the current window
  const Element* weight;   // of slot 0

  __device__ __forceinline__ DataOperands(const ConvProblem& problem,
                                          const Element* dy,
                                          const Element* weight,
                                          const Spot& spot,
                                          int first_channel,
                                          int64_t first_image)
      : problem(problem), weights(weight) {
    row = spot.row + problem.pad_top;
    column = spot.column + problem.pad_left;
    rows = windows_of(row, problem.R, problem.stride, problem.P);
    columns = windows_of(column, problem.S, problem.stride, problem.Q);
    units = max(0, rows.end - rows.begin) * max(0, columns.end - columns.begin) *
            ((problem.K + kDepth - 1) / kDepth);
    channel = first_channel + A::column(0);
    const int64_t image = first_image + B::column();
    missing = image < problem.columns ? 0 : problem.K;
    dy_base = dy + image / problem.lanes * problem.y_block +
              (int64_t{blockIdx.z} * problem.K + B::row(0)) * problem.y_channel +
              image % problem.lanes;
    p = rows.begin, q = columns.begin;
    begin_window();
  }

  __device__ __forceinline__ void begin_window() {
    const int r = row - p * problem.stride, s = column - q * problem.stride;
    filters_left = problem.K;
    weight = weights + weights_at(problem, p, q) +
             ((int64_t{channel} * problem.R + r) * problem.S + s) * problem.weight_row + A::row();
    dy = dy_base + (int64_t{p} * problem.Q + q) * problem.lanes;
  }

  __device__ __forceinline__ void copy(Unit<DataOperands>& unit, bool unit_exists) {
    if (filters_left <= 0) {
      if (++q == columns.end) q = columns.begin, ++p;
      begin_window();
    }
    const int channel_weights = problem.R * problem.S * problem.weight_row;
#pragma unroll
    for (int i = 0; i < A::kCount; ++i)
      A::copy(unit.a, i, weight + int64_t{i * A::kColumnsPerPass} * channel_weights,
              unit_exists & (channel + i * A::kColumnsPerPass < problem.C), filters_left - A::row(),
              problem.whole_filters());
#pragma unroll
    for (int i = 0; i < B::kCount; ++i)
      B::copy(unit.b, i, dy + int64_t{i * B::kRowsPerPass} * problem.y_channel,
              unit_exists & (B::row(i) + missing < filters_left));
    weight += kDepth;
    dy += int64_t{kDepth} * problem.y_channel;
    filters_left -= kDepth;
  }
};

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerSm)
    local_backward_data_kernel(const ConvProblem problem,
                               int tiles,
                               const typename T::Arithmetic::Element* dy,
                               const typename T::Arithmetic::Element* weight,
                               typename T::Arithmetic::Element* dx,
                               const typename T::Arithmetic::Element* mask) {
  begin_kernel();
  auto& ring = shared_storage<Ring<DataOperands<T>>>();
  const Spot spot = spot_of(tiles, problem.W);
  const int first_channel = blockIdx.y * T::kM;
  const int64_t first_image = int64_t{spot.tile} * T::kN;
  typename T::Sums sums;
  DataOperands<T> operands(problem, dy, weight, spot, first_channel, first_image);
  multiply(sums, ring, operands, operands.units);
  sums.finish();

  const int pixel = (spot.row * problem.W + spot.column) * problem.lanes;
  Place place = place_of(first_image + sums.column(0), problem.lanes);
#pragma unroll
  for (int j = 0; j < T::Sums::kQuads; ++j) {
    if (j > 0) place.advance(sums.column(j) - sums.column(j - 1), problem.lanes);
    if (first_image + sums.column(j) >= problem.columns) continue;
#pragma unroll
    for (int i = 0; i < T::Sums::kRows; ++i) {
      const int channel = first_channel + sums.row(i);
      if (channel >= problem.C) continue;
      const int64_t at = place.block * problem.x_block +
                         (int64_t{blockIdx.z} * problem.C + channel) * problem.x_channel + pixel +
                         place.rest;
      const float4 v = sums.quad(i, j);
      store4(dx + at, mask ? where_positive(v, load4(mask + at)) : v);
    }
  }
}

// ---- backward filter ----

// All slots of a thread belong to the same images, `left` of which there are from the first one on.
template <class T>
struct FilterOperands {
  using Element = typename T::Arithmetic::Element;
  using A = DepthSlots<typename T::Arithmetic, T::kM, T::kThreads>;
  using B = DepthSlots<typename T::Arithmetic, T::kN, T::kThreads>;
  static constexpr int kDepth = T::Arithmetic::kDepth;
  const ConvProblem& problem;
  const Element* dy;     // of this thread's images and its first filter
  const Element* x;      // of this thread's images, channel 0 of the group, under tap (0, 0)
  int left, lanes_left;  // of all images, of this block
  int filters;           // how many there are from this thread's first one on
  int tap[A::kCount];    // offset of the (c, r, s) of a slot, or kOutside

  __device__ __forceinline__ FilterOperands(const ConvProblem& p,
                                            const Element* dy,
                                            const Element* x,
                                            const Spot& spot,
                                            int first_row,
                                            int first_filter)
      : problem(p) {
    const int h = spot.row * p.stride - p.pad_top, w = spot.column * p.stride - p.pad_left;
    const int image = A::row(), block = image / p.lanes, lane = image % p.lanes;
    left = static_cast<int>(p.columns) - image;
    lanes_left = p.lanes - lane;
    const int filter = first_filter + B::column(0);
    filters = p.K - filter;
    this->dy = dy + block * p.y_block + (int64_t{blockIdx.z} * p.K + filter) * p.y_channel +
               (spot.row * p.Q + spot.column) * p.lanes + lane;
    this->x = x + block * p.x_block + int64_t{blockIdx.z} * p.C * p.x_channel + lane;
#pragma unroll
    for (int i = 0; i < A::kCount; ++i) {
      // Rows beyond the last repeat it; nobody stores them.
      const int row = min(first_row + A::column(i), p.C * p.R * p.S - 1);
      const int s = row % p.S + w, r = row / p.S % p.R + h, c = row / p.S / p.R;
      tap[i] = inside(r, s, p.H, p.W) ? c * p.x_channel + (r * p.W + s) * p.lanes : kOutside;
    }
  }

  // Units behind the end have no images left.
  __device__ __forceinline__ void copy(Unit<FilterOperands>& unit, bool) {
    while (lanes_left <= 0) {
      lanes_left += problem.lanes;
      x += problem.x_block - problem.lanes;
      dy += problem.y_block - problem.lanes;
    }
#pragma unroll
    for (int i = 0; i < A::kCount; ++i) A::copy(unit.a, i, x + tap[i], left > 0 && tap[i] >= 0);
#pragma unroll
    for (int i = 0; i < B::kCount; ++i)
      B::copy(unit.b, i, dy + int64_t{i * B::kColumnsPerPass} * problem.y_channel,
              left > 0 && i * B::kColumnsPerPass < filters);
    x += kDepth;
    dy += kDepth;
    lanes_left -= kDepth;
    left -= kDepth;
  }
};

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerSm)
    local_backward_filter_kernel(const ConvProblem problem,
                                 int tiles,
                                 const typename T::Arithmetic::Element* dy,
                                 const typename T::Arithmetic::Element* x,
                                 float* dweight) {
  begin_kernel();
  auto& ring = shared_storage<Ring<FilterOperands<T>>>();
  const Spot spot = spot_of(tiles, problem.Q);
  const int first_row = spot.tile * T::kM, first_filter = blockIdx.y * T::kN;
  typename T::Sums sums;
  FilterOperands<T> operands(problem, dy, x, spot, first_row, first_filter);
  constexpr int kDepth = T::Arithmetic::kDepth;
  multiply(sums, ring, operands, (static_cast<int>(problem.columns) + kDepth - 1) / kDepth);
  sums.finish();
  store_matrix(sums, dweight + weights_at(problem, spot.row, spot.column), first_row,
               problem.C * problem.R * problem.S, first_filter, problem.K);
}

// ---- launchers ----

// GEMM-N of the first two passes, and the reduction of the third, are the images.
ConvProblem local_problem(const LocalShape& shape, Precision precision) {
  ConvProblem problem = conv_problem(shape, precision);
  problem.columns = shape.N;
  return problem;
}

void check(const char* op, const LocalShape& s) {
  check(op, static_cast<const ConvShape&>(s));
  require(s.N < int64_t{1} << 30, op, ": N must be below 2^30, got N=", s.N, "; split the batch");
}

struct ForwardArguments {
  const void* x;
  const void* weight;
  const float* bias;
  void* y;
  bool relu;
  Stream stream;
};

template <class T>
void run_forward(const LocalShape& shape, const ForwardArguments& a) {
  using Element = typename T::Arithmetic::Element;
  const ConvProblem problem = local_problem(shape, T::Arithmetic::kPrecision);
  const int64_t tiles = ceil_div(shape.N, T::kN);
  const Dim3 grid = tile_grid("local_forward", shape.P * shape.Q * tiles,
                              ceil_div(problem.K, T::kM), problem.groups);
  launch(local_forward_kernel<T>, grid, Dim3(T::kThreads), sizeof(Ring<ForwardOperands<T>>),
         a.stream, problem, int(tiles), static_cast<const Element*>(a.x),
         static_cast<const Element*>(a.weight), a.bias, a.relu, static_cast<Element*>(a.y));
}

struct DataArguments {
  const void* dy;
  const void* weight;
  void* dx;
  const void* mask;  // null: none
  Stream stream;
};

template <class T>
void run_backward_data(const LocalShape& shape, const DataArguments& a) {
  using Element = typename T::Arithmetic::Element;
  const ConvProblem problem = local_problem(shape, T::Arithmetic::kPrecision);
  const int64_t tiles = ceil_div(shape.N, T::kN);
  const Dim3 grid = tile_grid("local_backward_data", shape.H * shape.W * tiles,
                              ceil_div(problem.C, T::kM), problem.groups);
  launch(local_backward_data_kernel<T>, grid, Dim3(T::kThreads), sizeof(Ring<DataOperands<T>>),
         a.stream, problem, int(tiles), static_cast<const Element*>(a.dy),
         static_cast<const Element*>(a.weight), static_cast<Element*>(a.dx),
         static_cast<const Element*>(a.mask));
}

struct FilterArguments {
  const void* dy;
  const void* x;
  float* dweight;
  float* dbias;  // null: not wanted
  Stream stream;
};

template <class T>
void run_backward_filter(const LocalShape& shape, const FilterArguments& a) {
  using Element = typename T::Arithmetic::Element;
  const char* op = "local_backward_filter";
  ConvProblem problem = local_problem(shape, T::Arithmetic::kPrecision);
  problem.weight_row = problem.K;  // the gradient is float32 in every precision
  const Element* dy = static_cast<const Element*>(a.dy);
  const int64_t tiles = ceil_div(int64_t{problem.C} * problem.R * problem.S, T::kM);
  const Dim3 grid =
      tile_grid(op, shape.P * shape.Q * tiles, ceil_div(problem.K, T::kN), problem.groups);
  launch(local_backward_filter_kernel<T>, grid, Dim3(T::kThreads), sizeof(Ring<FilterOperands<T>>),
         a.stream, problem, int(tiles), dy, static_cast<const Element*>(a.x), a.dweight);
  if (a.dbias)
    sum_images(op, shape.N, shape.K * shape.P * shape.Q, shape.lanes, dy, a.dbias, a.stream);
}

using Takes = bool (*)(const LocalShape&);

template <class T>
constexpr auto forward(const char* name, const char* when, Takes takes) {
  return variant<T>(name, when, takes, run_forward<T>);
}
template <class T>
constexpr auto backward_data(const char* name, const char* when, Takes takes) {
  return variant<T>(name, when, takes, run_backward_data<T>);
}
template <class T>
constexpr auto backward_filter(const char* name, const char* when, Takes takes) {
  return variant<T>(name, when, takes, run_backward_filter<T>);
}

bool any(const LocalShape&) { return true; }
bool few_filters(const LocalShape& s) { return s.K / s.groups <= 32; }
bool few_channels(const LocalShape& s) { return s.C / s.groups <= 32; }

const Variant<LocalShape, ForwardArguments> kForward[] = {
    forward<SimtTile<32, 128, 4>>("fp32-32x128", "K/g <= 32", few_filters),
    forward<SimtTile<64, 128>>("fp32-64x128", "any", any),
    forward<MmaTile<Tf32, 32, 128, 32, 32>>("tf32-32x128", "K/g <= 32", few_filters),
    forward<MmaTile<Tf32, 64, 128, 32, 64>>("tf32-64x128", "any", any),
    forward<MmaTile<Bf16, 32, 128, 32, 32>>("bf16-32x128", "K/g <= 32", few_filters),
    forward<MmaTile<Bf16, 64, 128, 32, 64>>("bf16-64x128", "any", any),
};

const Variant<LocalShape, DataArguments> kBackwardData[] = {
    backward_data<SimtTile<32, 128, 4>>("fp32-32x128", "C/g <= 32", few_channels),
    backward_data<SimtTile<64, 128>>("fp32-64x128", "any", any),
    backward_data<MmaTile<Tf32, 32, 128, 32, 32>>("tf32-32x128", "C/g <= 32", few_channels),
    backward_data<MmaTile<Tf32, 64, 128, 32, 64>>("tf32-64x128", "any", any),
    backward_data<MmaTile<Bf16, 32, 128, 32, 32>>("bf16-32x128", "C/g <= 32", few_channels),
    backward_data<MmaTile<Bf16, 64, 128, 32, 64>>("bf16-64x128", "any", any),
};

const Variant<LocalShape, FilterArguments> kBackwardFilter[] = {
    backward_filter<SimtTile<128, 32, 4>>("fp32-128x32", "K/g <= 32", few_filters),
    backward_filter<SimtTile<128, 64>>("fp32-128x64", "any", any),
    backward_filter<MmaTile<Tf32, 128, 32, 32, 32>>("tf32-128x32", "K/g <= 32", few_filters),
    backward_filter<MmaTile<Tf32, 128, 64, 64, 32>>("tf32-128x64", "any", any),
    backward_filter<MmaTile<Bf16, 128, 32, 32, 32>>("bf16-128x32", "K/g <= 32", few_filters),
    backward_filter<MmaTile<Bf16, 128, 64, 64, 32>>("bf16-128x64", "any", any),
};

}  // namespace

void local_forward(const LocalShape& shape,
                   Precision precision,
                   const void* x,
                   const void* weight,
                   const float* bias,
                   void* y,
                   bool relu,
                   Stream stream) {
  check("local_forward", shape);
  choose("local_forward", kForward, shape, precision)
      .run(shape, ForwardArguments{x, weight, bias, y, relu, stream});
}

void local_backward_data(const LocalShape& shape,
                         Precision precision,
                         const void* dy,
                         const void* weight,
                         void* dx,
                         const void* mask,
                         Stream stream) {
  check("local_backward_data", shape);
  choose("local_backward_data", kBackwardData, shape, precision)
      .run(shape, DataArguments{dy, weight, dx, mask, stream});
}

void local_backward_filter(const LocalShape& shape,
                           Precision precision,
                           const void* dy,
                           const void* x,
                           float* dweight,
                           float* dbias,
                           Stream stream) {
  check("local_backward_filter", shape);
  choose("local_backward_filter", kBackwardFilter, shape, precision)
      .run(shape, FilterArguments{dy, x, dweight, dbias, stream});
}

std::string local_forward_variant(const LocalShape& shape, Precision precision) {
  check("local_forward", shape);
  return choose("local_forward", kForward, shape, precision).name;
}

std::string local_backward_data_variant(const LocalShape& shape, Precision precision) {
  check("local_backward_data", shape);
  return choose("local_backward_data", kBackwardData, shape, precision).name;
}

std::string local_backward_filter_variant(const LocalShape& shape, Precision precision) {
  check("local_backward_filter", shape);
  return choose("local_backward_filter", kBackwardFilter, shape, precision).name;
}

std::vector<VariantRow> local_variants() {
  std::vector<VariantRow> rows = listed("local_forward", kForward);
  for (const VariantRow& row : listed("local_backward_data", kBackwardData)) rows.push_back(row);
  for (const VariantRow& row : listed("local_backward_filter", kBackwardFilter))
    rows.push_back(row);
  return rows;
}

}  // namespace convnet
