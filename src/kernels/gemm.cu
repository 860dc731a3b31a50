// Fully-connected layers: forward and both gradients.
//
// What       forward y[k,n] = bias[k] + sum over c of weight[c,k] x[c,n], plus what y held before
//            where asked, then ReLU and dropout where asked; backward data dx[c,n] = sum over k of
//            weight[c,k] dy[k,n], with a mask 0 where mask[c,n] > 0 does not hold; backward filter
//            dweight[c,k] = sum over n of x[c,n] dy[k,n], dbias[k] = sum over n of dy[k,n]; with
//            update, dweight[c,k] is not stored but is the gradient in a step of SGD of weight[c,k]
//            (tile/update.cuh).
// Tensors    x and mask [N/L][C][L], weight [C][K] (bf16: [C][K8]), y [N/L][K][L] by precision; bias,
//            dweight, dbias and sums float32. workspace, float32: [parts] of y or dx, or [N/L] of
//            dbias, rows padded to 4 floats. With update weight and velocity float32 [C][K], copy
//            (may be null) bf16 [C][K8].
//
//            pass             GEMM-M   GEMM-N   reduction   a (tile/loaders.cuh)        b
//            forward          K        n        C           weight, rows                x, rows
//            backward data    C        n        K           weight, depth               dy, rows
//            backward filter  C        K        n           x, depth                    dy, depth
//
//            (On Hopper, in bf16: tile/wgmma_maps.cuh and tile/wgmma_filter.cuh.)
// Work       one block per output tile and part of the reduction: blockIdx = (n or C, K or C,
//            part). 128 images leave a 4096-wide layer 32 tiles of 128 x 128, so forward and
//            backward data cut their reduction into up to 8 parts that a second kernel adds in
//            ascending order. The cut of forward depends on C alone, so that half of the outputs on
//            another device have the same bits. Dropout is drawn where parts are added; for its sake a
//            single part goes that way too. Tiles are narrower where there are few images or outputs
//            (kForward, kBackwardData, kBackwardFilter).
// Shared     a ring of both operands (tile/gemm_tile.cuh), 50 to 74 KiB for 128 x 128 sums, as in
//            the three passes of a convolution.
// Barriers   one per stage (tile/gemm_tile.cuh).
// Needs      lanes a multiple of 8, N a multiple of lanes, C and K below 2^31 / lanes, 16-byte
//            aligned tensors. float32 weights with K not a multiple of 4 are copied and written 4
//            bytes at a time.
// Cost       2 N C K FLOP and 4 C K bytes of weights (bf16: 2 C K), N / 2 FLOP per byte (bf16: N):
//            bound by memory for few images; in fp32 by FFMA issue from about N = 32 on where the
//            machine does 15 FLOP in the time of a byte (67 TFLOP/s to 4.8 TB/s), with tensor cores
//            from several hundred on. Parts cost 8 bytes per output and part, mostly in L2. Backward
//            filter with update moves 16 bytes per weight, 18 with a copy, in place of the 4 of
//            dweight (and of the 20 or 22 of an update behind it): N / 9 FLOP per byte, bound by
//            memory up to several hundred images. Weights and velocities of a tile are on their way
//            to L2 from the beginning of its block.
#include "gemm.hpp"

#include <algorithm>
#include <type_traits>

#include "arch/arch.cuh"
#include "tile/epilogue.cuh"
#include "tile/linear_operands.cuh"
#include "tile/simt.cuh"
#include "tile/sums.cuh"
#include "tile/tensor_core.cuh"
#include "tile/update.cuh"
#include "tile/variants.cuh"
#include "tile/wgmma_filter.cuh"
#include "tile/wgmma_maps.cuh"

namespace convnet {
namespace {

// Forward and backward data. `partial` takes the products of every part; where it is null, there is
// one part, and `out` takes the complete ones.
template <class T, template <class> class Weights>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerSm)
    product_kernel(const Product product,
                   const typename T::Arithmetic::Element* weight,
                   const typename T::Arithmetic::Element* x,
                   const float* bias,
                   bool accumulate,
                   bool relu,
                   const typename T::Arithmetic::Element* mask,
                   typename T::Arithmetic::Element* out,
                   float* partial) {
  begin_kernel();
  constexpr int kDepth = T::Arithmetic::kDepth;
  auto& ring = shared_storage<Ring<WeightOperands<T, Weights>>>();
  const int first_row = blockIdx.y * T::kM;
  const int64_t first_column = int64_t{blockIdx.x} * T::kN;
  const int first_depth = static_cast<int>(blockIdx.z * product.depth_per_part);
  const int depth =
      static_cast<int>(min(product.depth_per_part, int64_t{product.depth - first_depth}));
  WeightOperands<T, Weights> operands(product, weight, x, first_row, first_column, first_depth,
                                      depth);
  typename T::Sums sums;
  multiply(sums, ring, operands, (depth + kDepth - 1) / kDepth);
  sums.finish();

  Place place = place_of(first_column + sums.column(0), product.lanes);
#pragma unroll
  for (int j = 0; j < T::Sums::kQuads; ++j) {
    if (j > 0) place.advance(sums.column(j) - sums.column(j - 1), product.lanes);
    if (first_column + sums.column(j) >= product.columns) continue;
#pragma unroll
    for (int i = 0; i < T::Sums::kRows; ++i) {
      const int row = first_row + sums.row(i);
      if (row >= product.rows) continue;
      const int64_t target = (place.block * product.rows + row) * product.lanes + place.rest;
      if (partial) {
        store4(partial + blockIdx.z * product.part_stride + target, sums.quad(i, j));
      } else {
        float4 v = add(sums.quad(i, j), bias ? bias[row] : 0.0f);
        if (accumulate) v = add(v, load4(out + target));
        if (relu) v = rectified(v);
        if (mask) v = where_positive(v, load4(mask + target));
        store4(out + target, v);
      }
    }
  }
}

// Backward filter: rows are input features, columns filters, the reduction runs over `images`.
// Output is what becomes of the sums, dweight's address or a WeightUpdate.
template <class T, class Output>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerSm)
    gradient_kernel(int C,
                    int K,
                    int lanes,
                    int images,
                    const typename T::Arithmetic::Element* dy,
                    const typename T::Arithmetic::Element* x,
                    const Output out) {
  begin_kernel();
  constexpr int kDepth = T::Arithmetic::kDepth;
  constexpr bool kUpdates = std::is_same_v<Output, WeightUpdate>;
  auto& ring = shared_storage<Ring<GradientOperands<T>>>();
  const int first_row = blockIdx.x * T::kM, first_column = blockIdx.y * T::kN;
  if constexpr (kUpdates) prefetch_tile<T::kThreads, T::kM, T::kN>(out, first_row, C, first_column);
  GradientOperands<T> operands(x, dy, C, K, first_row, first_column, lanes, images);
  typename T::Sums sums;
  multiply(sums, ring, operands, (images + kDepth - 1) / kDepth);
  sums.finish();
  if constexpr (kUpdates)
    update_matrix(sums, out, first_row, C, first_column);
  else
    store_matrix(sums, out, first_row, C, first_column, K);
}

// A reduction is cut into at most 8 parts of at least 128 terms. Forward takes as many as C allows,
// whatever K: eight parts of the 32 tiles of a 4096-wide layer at 128 images make 256 blocks, for
// 132 SMs with two blocks each. Backward data is free to look at its tiles, and takes what comes
// closest below two such waves.
constexpr int64_t kMostParts = 8, kLeastDepth = 128, kTwoWaves = 528;

// Terms of a part in whole stages of any arithmetic, so that they are all cut alike.
constexpr int64_t kGrain = 32;

int64_t forward_parts(const LinearShape& s) {
  return std::clamp(s.C / kLeastDepth, int64_t{1}, kMostParts);
}

int64_t backward_data_parts(const LinearShape& s) {
  const int64_t tiles = ceil_div(s.C, 128) * ceil_div(s.N, 128);
  return std::clamp(std::min(s.K / kLeastDepth, kTwoWaves / tiles), int64_t{1}, kMostParts);
}

void check(const char* op, const LinearShape& s) {
  require(s.N >= 1 && s.C >= 1 && s.K >= 1, op, ": every size must be at least 1, got N=", s.N,
          " C=", s.C, " K=", s.K, "; skip the call for empty tensors");
  require(s.lanes >= 8 && s.lanes % 8 == 0 && s.N % s.lanes == 0, op,
          ": lanes must be a multiple of 8 and divide N, got N=", s.N, " lanes=", s.lanes,
          "; pad the batch with images");
  const int64_t limit = int64_t{1} << 31;
  require(s.C < limit / s.lanes && round_up(s.K, 8) < limit / s.lanes && s.N < limit / 2, op,
          ": C and K must be below 2^31 / lanes and N below 2^30, got N=", s.N, " C=", s.C,
          " K=", s.K, " lanes=", s.lanes, "; split the layer or the batch");
}

// Of one of the two products with weights: rows x N outputs of `depth` terms, in at most
// `wanted_parts` parts.
struct ProductArguments {
  const char* op;
  int64_t rows, depth, wanted_parts;
  const void* weight;
  const void* x;
  const float* bias;
  bool accumulate, relu;
  const void* mask;  // null: none
  Dropout dropout;
  void* out;
  float* workspace;
  Stream stream;
};

template <class Element>
Finish<Element> finish_of(const LinearShape& shape, const ProductArguments& a) {
  return {a.bias,   a.rows, shape.lanes, a.accumulate, a.relu, static_cast<const Element*>(a.mask),
          a.dropout};
}

template <class T, template <class> class Weights>
void run_product(const LinearShape& shape, const ProductArguments& a) {
  using Element = typename T::Arithmetic::Element;
  const int64_t depth_per_part = round_up(ceil_div(a.depth, a.wanted_parts), kGrain);
  const int64_t parts = ceil_div(a.depth, depth_per_part);
  const int64_t count = shape.N * a.rows;  // N comes in eights: a multiple of 4
  const int64_t weight_row =
      T::Arithmetic::kPrecision == Precision::bf16 ? round_up(shape.K, 8) : shape.K;
  const Product product{int(a.rows),    int(a.depth), int(weight_row), int(shape.lanes), shape.N,
                        depth_per_part, count};
  const Dim3 grid = tile_grid(a.op, ceil_div(shape.N, T::kN), ceil_div(a.rows, T::kM), parts);
  const bool whole = parts == 1 && !a.dropout.acts();
  require(whole || a.workspace, a.op, ": needs a workspace, got a null address");
  const Element* mask = static_cast<const Element*>(a.mask);
  Element* out = static_cast<Element*>(a.out);
  launch(product_kernel<T, Weights>, grid, Dim3(T::kThreads),
         sizeof(Ring<WeightOperands<T, Weights>>), a.stream, product,
         static_cast<const Element*>(a.weight), static_cast<const Element*>(a.x), a.bias,
         a.accumulate, a.relu, mask, out, whole ? nullptr : a.workspace);
  if (!whole) sum_parts(count, parts, a.workspace, out, a.stream, finish_of<Element>(shape, a));
}

// On Hopper. Parts are at most as many as above, for the sake of the workspace, and depend on the same.
int64_t wgmma_forward_parts(const LinearShape& s) { return std::min(forward_parts(s), int64_t{4}); }

// Backward data sums in one part where that costs less than adding parts, or hardly more than their
// launch is worth: up to 1024 terms, and up to 4096 where the narrowest tiles are one each for most
// multiprocessors.
int64_t wgmma_backward_data_parts(const LinearShape& s) {
  const int64_t narrowest = ceil_div(s.C, 32) * ceil_div(s.N, 128);
  if (s.K <= 1024 || (s.K <= 4096 && narrowest > 66 && narrowest <= 132)) return 1;
  const int64_t tiles = ceil_div(s.C, 128) * ceil_div(s.N, 128);
  return std::clamp(132 / tiles, int64_t{1}, std::min(backward_data_parts(s), int64_t{4}));
}

template <class T, int64_t (*kParts)(const LinearShape&)>
void run_wgmma(const LinearShape& shape, const ProductArguments& a) {
  const int64_t blocks = shape.N / shape.lanes, count = shape.N * a.rows;
  MapsCall call{};
  call.in = feature_activation(a.x, a.depth, blocks);
  call.out = feature_activation(a.out, a.rows, blocks);
  call.weight = a.weight;
  call.R = call.S = call.stride = call.groups = 1;
  call.parts = even_parts(ceil_div(a.depth, T::kDepth), kParts(shape));
  if (call.parts == 1 && !a.dropout.acts()) {
    call.bias = a.bias, call.relu = a.relu, call.mask = a.mask;
    launch_maps<T, SharedStrip>(a.op, call, a.stream);
    return;
  }
  require(a.workspace, a.op, ": needs a workspace, got a null address");
  call.partial = a.workspace;
  launch_maps<T, SharedStrip>(a.op, call, a.stream);
  sum_parts(count, call.parts, a.workspace, static_cast<bf16*>(a.out), a.stream,
            finish_of<bf16>(shape, a));
}

struct GradientArguments {
  const void* dy;
  const void* x;
  float* dweight;
  const WeightUpdate* update;  // in place of dweight; null: dweight is stored
  float* dbias;
  float* workspace;
  Stream stream;
};

template <class T>
void run_gradient(const LinearShape& shape, const GradientArguments& a) {
  using Element = typename T::Arithmetic::Element;
  const Element* dy = static_cast<const Element*>(a.dy);
  const Dim3 grid =
      tile_grid("linear_backward_filter", ceil_div(shape.C, T::kM), ceil_div(shape.K, T::kN), 1);
  const auto start = [&](auto out) {
    launch(gradient_kernel<T, decltype(out)>, grid, Dim3(T::kThreads),
           sizeof(Ring<GradientOperands<T>>), a.stream, int(shape.C), int(shape.K),
           int(shape.lanes), int(shape.N), dy, static_cast<const Element*>(a.x), out);
  };
  if (a.update)
    start(*a.update);
  else
    start(a.dweight);
  if (a.dbias)
    sum_gradients(
        {},
        sum_rows(shape.N / shape.lanes, shape.K, shape.lanes, dy, a.dbias, a.workspace, a.stream),
        a.stream);
}

template <class T>
void run_wgmma_gradient(const LinearShape& shape, const GradientArguments& a) {
  const int64_t blocks = shape.N / shape.lanes;
  FilterCall call{};
  call.dy = feature_activation(a.dy, shape.K, blocks);
  call.x = feature_activation(a.x, shape.C, blocks);
  call.dweight = a.dweight, call.dbias = a.dbias;
  call.R = call.S = call.stride = call.groups = 1, call.whole = true;
  if (a.update)
    launch_filter_update<T>("linear_backward_filter", call, *a.update, a.stream);
  else
    launch_filter<T>("linear_backward_filter", call, a.stream);
}

using ProductRow = Variant<LinearShape, ProductArguments>;
using GradientRow = Variant<LinearShape, GradientArguments>;
using Takes = bool (*)(const LinearShape&);

template <class T>
constexpr ProductRow forward(const char* name, const char* when, Takes takes) {
  return variant<T>(name, when, takes, run_product<T, WeightRows>);
}
template <class T>
constexpr ProductRow backward_data(const char* name, const char* when, Takes takes) {
  return variant<T>(name, when, takes, run_product<T, WeightDepth>);
}
template <class T>
constexpr GradientRow backward_filter(const char* name, const char* when, Takes takes) {
  return variant<T>(name, when, takes, run_gradient<T>);
}

// Few images take a narrow tile, so that the idle columns cost little; few outputs take the middle
// one, for more blocks.
bool any(const LinearShape&) { return true; }
bool one_block(const LinearShape& s) { return s.N <= 8; }
bool few_images(const LinearShape& s) { return s.N <= 32; }
bool few_outputs(const LinearShape& s) { return s.N <= 64 || s.K <= 2048; }
bool few_inputs(const LinearShape& s) { return s.N <= 64 || s.C <= 2048; }
bool few_filters(const LinearShape& s) { return s.K <= 64; }

bool whole_blocks(const LinearShape& s) { return s.lanes == 64; }
bool many_blocks(const LinearShape& s) { return s.lanes == 64 && s.N >= 256; }

// Whether there are at most 132 tiles, one for each multiprocessor of a large GPU, of 128 images and
// `width` outputs: narrow ones are for layers that have no more of them.
bool one_each(const LinearShape& s, int64_t outputs, int64_t width, int64_t parts) {
  return s.lanes == 64 && ceil_div(outputs, width) * ceil_div(s.N, 128) * parts <= 132;
}
template <int kMaps>
bool narrow_forward(const LinearShape& s) {
  return one_each(s, s.K, kMaps, wgmma_forward_parts(s));
}
template <int kMaps>
bool narrow_backward_data(const LinearShape& s) {
  return one_each(s, s.C, kMaps, wgmma_backward_data_parts(s));
}

template <int kBlocks, int kMaps>
constexpr ProductRow wgmma_forward(const char* name, const char* when, Takes takes) {
  return {name,        Precision::bf16,
          90,          64 * kBlocks,
          kMaps,       when,
          takes,       run_wgmma<MapsTile<kMaps, kBlocks, 64, true>, wgmma_forward_parts>,
          whole_blocks};
}
template <int kBlocks, int kMaps>
constexpr ProductRow wgmma_backward_data(const char* name, const char* when, Takes takes) {
  return {name,        Precision::bf16,
          90,          64 * kBlocks,
          kMaps,       when,
          takes,       run_wgmma<MapsTile<kMaps, kBlocks, 64, false>, wgmma_backward_data_parts>,
          whole_blocks};
}
template <int kChannels>
constexpr GradientRow wgmma_backward_filter(const char* name, const char* when, Takes takes) {
  return {name,        Precision::bf16,
          90,          128,
          kChannels,   when,
          takes,       run_wgmma_gradient<FilterTile<2, 1, kChannels>>,
          whole_blocks};
}

const ProductRow kForward[] = {
    wgmma_forward<4, 128>("wgmma-256x128", "64 lanes, N >= 256", many_blocks),
    wgmma_forward<2, 64>("wgmma-128x64", "64 lanes, at most 132 such tiles", narrow_forward<64>),
    wgmma_forward<2, 128>("wgmma-128x128", "64 lanes", whole_blocks),

    forward<SimtTile<128, 8, 4>>("fp32-128x8", "N <= 8", one_block),
    forward<SimtTile<128, 32>>("fp32-128x32", "N <= 32", few_images),
    forward<SimtTile<128, 64>>("fp32-128x64", "N <= 64 or K <= 2048", few_outputs),
    forward<SimtTile<128, 128>>("fp32-128x128", "any", any),

    forward<MmaTile<Tf32, 128, 32, 32, 32>>("tf32-128x32", "N <= 32", few_images),
    forward<MmaTile<Tf32, 128, 64, 64, 32>>("tf32-128x64", "N <= 64 or K <= 2048", few_outputs),
    forward<MmaTile<Tf32, 128, 128, 64, 64>>("tf32-128x128", "any", any),

    forward<MmaTile<Bf16, 128, 32, 32, 32>>("bf16-128x32", "N <= 32", few_images),
    forward<MmaTile<Bf16, 128, 64, 64, 32>>("bf16-128x64", "N <= 64 or K <= 2048", few_outputs),
    forward<MmaTile<Bf16, 128, 128, 64, 64>>("bf16-128x128", "any", any),
};

const ProductRow kBackwardData[] = {
    wgmma_backward_data<4, 128>("wgmma-256x128", "64 lanes, N >= 256", many_blocks),
    wgmma_backward_data<2, 32>(
        "wgmma-128x32", "64 lanes, at most 132 such tiles", narrow_backward_data<32>),
    wgmma_backward_data<2, 80>(
        "wgmma-128x80", "64 lanes, at most 132 such tiles", narrow_backward_data<80>),
    wgmma_backward_data<2, 128>("wgmma-128x128", "64 lanes", whole_blocks),

    backward_data<SimtTile<128, 32>>("fp32-128x32", "N <= 32", few_images),
    backward_data<SimtTile<128, 64>>("fp32-128x64", "N <= 64 or C <= 2048", few_inputs),
    backward_data<SimtTile<64, 128>>("fp32-64x128", "any", any),

    backward_data<MmaTile<Tf32, 128, 32, 32, 32>>("tf32-128x32", "N <= 32", few_images),
    backward_data<MmaTile<Tf32, 128, 64, 64, 32>>(
        "tf32-128x64", "N <= 64 or C <= 2048", few_inputs),
    backward_data<MmaTile<Tf32, 128, 128, 64, 64>>("tf32-128x128", "any", any),

    backward_data<MmaTile<Bf16, 128, 32, 32, 32>>("bf16-128x32", "N <= 32", few_images),
    backward_data<MmaTile<Bf16, 128, 64, 64, 32>>(
        "bf16-128x64", "N <= 64 or C <= 2048", few_inputs),
    backward_data<MmaTile<Bf16, 128, 128, 64, 64>>("bf16-128x128", "any", any),
};

const GradientRow kBackwardFilter[] = {
    wgmma_backward_filter<256>("wgmma-128x256", "64 lanes, N >= 256", many_blocks),
    wgmma_backward_filter<128>("wgmma-128x128", "64 lanes", whole_blocks),

    backward_filter<SimtTile<128, 16, 4>>("fp32-128x16", "K <= 64", few_filters),
    backward_filter<SimtTile<128, 128>>("fp32-128x128", "any", any),

    backward_filter<MmaTile<Tf32, 128, 32, 32, 32>>("tf32-128x32", "K <= 64", few_filters),
    backward_filter<MmaTile<Tf32, 128, 128, 64, 64>>("tf32-128x128", "any", any),

    backward_filter<MmaTile<Bf16, 128, 32, 32, 32>>("bf16-128x32", "K <= 64", few_filters),
    backward_filter<MmaTile<Bf16, 128, 128, 64, 64>>("bf16-128x128", "any", any),
};

}  // namespace

int64_t linear_workspace(const LinearShape& shape, Precision) {
  check("linear_workspace", shape);
  const int64_t forward_count = forward_parts(shape), data_count = backward_data_parts(shape);
  const int64_t forward = forward_count * shape.N * shape.K;  // a single part, for dropout
  const int64_t data = data_count > 1 ? data_count * shape.N * shape.C : 0;
  const int64_t bias = sum_rows_workspace(shape.N / shape.lanes, shape.K);
  return std::max({forward, data, bias}) * int64_t{sizeof(float)};
}

void linear_forward(const LinearShape& shape,
                    Precision precision,
                    const void* x,
                    const void* weight,
                    const float* bias,
                    void* y,
                    bool relu,
                    const std::optional<DropoutShape>& dropout,
                    const Control* control,
                    float* workspace,
                    bool accumulate,
                    Stream stream) {
  const char* op = "linear_forward";
  check(op, shape);
  require(!dropout || (dropout->N == shape.N && dropout->features == shape.K &&
                       dropout->lanes == shape.lanes),
          op, ": dropout must be of y, N=", shape.N, " features=", shape.K, " lanes=", shape.lanes);
  choose(op, kForward, shape, precision, accumulate)
      .run(shape,
           ProductArguments{op, shape.K, shape.C, forward_parts(shape), weight, x, bias, accumulate,
                            relu, nullptr, dropout ? dropout_of(op, *dropout, control) : Dropout{},
                            y, workspace, stream});
}

void linear_backward_data(const LinearShape& shape,
                          Precision precision,
                          const void* dy,
                          const void* weight,
                          void* dx,
                          const void* mask,
                          float* workspace,
                          Stream stream) {
  const char* op = "linear_backward_data";
  check(op, shape);
  choose(op, kBackwardData, shape, precision)
      .run(shape, ProductArguments{op, shape.C, shape.K, backward_data_parts(shape), weight, dy,
                                   nullptr, false, false, mask, Dropout{}, dx, workspace, stream});
}

void linear_backward_filter(const LinearShape& shape,
                            Precision precision,
                            const void* dy,
                            const void* x,
                            float* dweight,
                            float* dbias,
                            float* workspace,
                            Stream stream) {
  const char* op = "linear_backward_filter";
  check(op, shape);
  require(!dbias || workspace, op, ": dbias needs a workspace, got a null address");
  choose(op, kBackwardFilter, shape, precision)
      .run(shape, GradientArguments{dy, x, dweight, nullptr, dbias, workspace, stream});
}

void linear_backward_filter_update(const LinearShape& shape,
                                   Precision precision,
                                   const void* dy,
                                   const void* x,
                                   float* weight,
                                   float* velocity,
                                   bf16* copy,
                                   float* dbias,
                                   Control* control,
                                   float rate,
                                   float decay,
                                   float momentum,
                                   float* workspace,
                                   Stream stream) {
  const char* op = "linear_backward_filter";
  check(op, shape);
  require(!dbias || workspace, op, ": dbias needs a workspace, got a null address");
  const WeightUpdate update{
      weight, velocity, copy, {shape.K, round_up(shape.K, 8)}, control, {rate, decay, momentum}};
  choose(op, kBackwardFilter, shape, precision)
      .run(shape, GradientArguments{dy, x, nullptr, &update, dbias, workspace, stream});
}

std::string linear_forward_variant(const LinearShape& shape, Precision precision) {
  check("linear_forward", shape);
  return choose("linear_forward", kForward, shape, precision).name;
}

std::string linear_backward_data_variant(const LinearShape& shape, Precision precision) {
  check("linear_backward_data", shape);
  return choose("linear_backward_data", kBackwardData, shape, precision).name;
}

std::string linear_backward_filter_variant(const LinearShape& shape, Precision precision) {
  check("linear_backward_filter", shape);
  return choose("linear_backward_filter", kBackwardFilter, shape, precision).name;
}

std::vector<VariantRow> linear_variants() {
  std::vector<VariantRow> rows = listed("linear_forward", kForward);
  for (const VariantRow& row : listed("linear_backward_data", kBackwardData)) rows.push_back(row);
  for (const VariantRow& row : listed("linear_backward_filter", kBackwardFilter))
    rows.push_back(row);
  return rows;
}

}  // namespace convnet
