// Fully-connected layers: forward and both gradients.
//
// What       forward y[k,n] = bias[k] + sum over c of weight[c,k] x[c,n], then ReLU where asked;
//            backward data dx[c,n] = sum over k of weight[c,k] dy[k,n]; backward filter
//            dweight[c,k] = sum over n of x[c,n] dy[k,n], dbias[k] = sum over n of dy[k,n].
// Tensors    x [N/L][C][L], weight [C][K], y [N/L][K][L]; float32 throughout. workspace: [parts] of
//            y or dx, or [N/L] of dbias, rows padded to 4 floats.
//
//            pass             GEMM-M   GEMM-N   reduction   a (tile/loaders.cuh)        b
//            forward          K        n        C           weight, rows                x, rows
//            backward data    C        n        K           weight, depth (transposed)  dy, rows
//            backward filter  K        C        n           dy, depth                   x, depth
//
// Work       one block per output tile and part of the reduction: blockIdx = (n or C, K or C,
//            part). 128 images leave a 4096-wide layer 32 tiles of 128 x 128, so forward and
//            backward data cut their reduction into up to 8 parts that a second kernel adds in
//            ascending order. The cut of forward depends on C alone, so that half of the outputs on
//            another device have the same bits. Tiles are narrower where there are few images or
//            outputs.
// Shared     two stages of both operands, 11 to 17 KiB (tile/gemm_tile.cuh).
// Barriers   one per 8 reduction rows (tile/gemm_tile.cuh).
// Needs      lanes a multiple of 8, N a multiple of lanes, C and K below 2^31 / lanes, 16-byte
//            aligned tensors. K not a multiple of 4 reads and writes weights by scalars.
// Cost       2 N C K FLOP and 4 C K bytes of weights, N / 2 FLOP per byte: bound by memory for few
//            images, by FFMA issue from about N = 32 on where the machine does 15 FLOP in the time
//            of a byte (67 TFLOP/s to 4.8 TB/s). Parts cost 8 bytes per output and part, mostly in
//            L2.
#include "gemm.hpp"

#include <algorithm>

#include "arch/arch.cuh"
#include "tile/epilogue.cuh"
#include "tile/linear_operands.cuh"
#include "tile/sums.cuh"
#include "tile/variants.cuh"

namespace convnet {
namespace {

// Forward and backward data. `partial` takes the products of every part, complete ones where there
// is one part.
template <class T, class Weights>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerSm)
    product_kernel(const Product product,
                   const float* weight,
                   const float* x,
                   const float* bias,
                   bool relu,
                   float* partial) {
  auto& shared = shared_storage<Stages<T>>();
  const int first_row = blockIdx.y * T::kM;
  const int64_t first_column = int64_t{blockIdx.x} * T::kN;
  const int first_depth = static_cast<int>(blockIdx.z * product.depth_per_part);
  const int depth =
      static_cast<int>(min(product.depth_per_part, int64_t{product.depth - first_depth}));
  WeightOperands<T, Weights> operands(product, weight, x, first_row, first_column, first_depth,
                                      depth);
  Sums<T> sums;
  multiply(sums, shared, operands, (depth + kStep - 1) / kStep);

#pragma unroll
  for (int j = 0; j < T::kThreadN; j += 4) {
    const int64_t n = first_column + sums.column(j);
    if (n >= product.columns) continue;
    float* target =
        partial + blockIdx.z * product.part_stride + image_offset(n, product.rows, product.lanes);
#pragma unroll
    for (int i = 0; i < T::kThreadM; ++i) {
      const int row = first_row + sums.row(i);
      if (row >= product.rows) continue;
      const float b = bias ? bias[row] : 0.0f;
      const float* v = sums.value[i];
      const float4 out{v[j] + b, v[j + 1] + b, v[j + 2] + b, v[j + 3] + b};
      store4(target + int64_t{row} * product.lanes, relu ? rectified(out) : out);
    }
  }
}

// Backward filter: rows are filters, columns input features, the reduction runs over `images`.
template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerSm) gradient_kernel(
    int K, int C, int lanes, int images, const float* dy, const float* x, float* dweight) {
  auto& shared = shared_storage<Stages<T>>();
  const int first_row = blockIdx.y * T::kM, first_column = blockIdx.x * T::kN;
  GradientOperands<T> operands{{dy, first_row, K, lanes}, {x, first_column, C, lanes}};
  Sums<T> sums;
  multiply(sums, shared, operands, images / kStep);
  store_transposed(sums, dweight, first_row, K, first_column, C);
}

using ProductKernel = void (*)(Product, const float*, const float*, const float*, bool, float*);
using GradientKernel = void (*)(int, int, int, int, const float*, const float*, float*);

template <class T, template <class> class Weights>
constexpr Variant<ProductKernel> product_row() {
  return variant<T, ProductKernel>(product_kernel<T, Weights<T>>);
}

const Variant<ProductKernel> kForward[] = {product_row<Tile<128, 128>, WeightRows>(),
                                           product_row<Tile<128, 64>, WeightRows>(),
                                           product_row<Tile<128, 32>, WeightRows>()};
const Variant<ProductKernel> kBackwardData[] = {product_row<Tile<128, 128>, WeightDepth>(),
                                                product_row<Tile<128, 64>, WeightDepth>(),
                                                product_row<Tile<128, 32>, WeightDepth>()};
const Variant<GradientKernel> kBackwardFilter[] = {
    variant<Tile<128, 128>, GradientKernel>(gradient_kernel<Tile<128, 128>>),
    variant<Tile<16, 128, 4>, GradientKernel>(gradient_kernel<Tile<16, 128, 4>>)};

// Few images take a narrow tile, so that the idle columns cost little; few outputs take the middle
// one, for more blocks.
template <std::size_t kCount>
const Variant<ProductKernel>& tile_for(const Variant<ProductKernel> (&table)[kCount],
                                       int64_t rows,
                                       int64_t images) {
  return images <= 32 ? table[2] : images <= 64 || rows <= 2048 ? table[1] : table[0];
}

// A reduction is cut into at most 8 parts of at least 128 terms. Forward takes as many as C allows,
// whatever K: eight parts of the 32 tiles of a 4096-wide layer at 128 images make 256 blocks, for
// 132 SMs with two blocks each. Backward data is free to look at its tiles, and takes what comes
// closest below two such waves.
constexpr int64_t kMostParts = 8, kLeastDepth = 128, kTwoWaves = 528;

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
  require(s.C < limit / s.lanes && s.K < limit / s.lanes && s.N < limit / 2, op,
          ": C and K must be below 2^31 / lanes and N below 2^30, got N=", s.N, " C=", s.C,
          " K=", s.K, " lanes=", s.lanes, "; split the layer or the batch");
}

// rows x N products of `depth` terms, in at most `wanted_parts` parts.
void run_product(const char* op,
                 const Variant<ProductKernel>& tile,
                 const LinearShape& shape,
                 int64_t rows,
                 int64_t depth,
                 int64_t wanted_parts,
                 const float* weight,
                 const float* x,
                 const float* bias,
                 bool relu,
                 float* out,
                 float* workspace,
                 Stream stream) {
  const int64_t depth_per_part = round_up(ceil_div(depth, wanted_parts), kStep);
  const int64_t parts = ceil_div(depth, depth_per_part);
  const int64_t count = shape.N * rows;  // N comes in eights: a multiple of 4
  const Product product{int(rows), int(depth),     int(shape.K), int(shape.lanes),
                        shape.N,   depth_per_part, count};
  const Dim3 grid = output_grid(op, tile, rows, shape.N, parts);
  if (parts == 1) {
    launch(tile.kernel, grid, Dim3(tile.threads), tile.shared_bytes, stream, product, weight, x,
           bias, relu, out);
    return;
  }
  launch(tile.kernel, grid, Dim3(tile.threads), tile.shared_bytes, stream, product, weight, x,
         nullptr, false, workspace);
  sum_parts(count, parts, workspace, out, stream, ChannelBias{bias, rows, shape.lanes}, relu);
}

}  // namespace

int64_t linear_workspace(const LinearShape& shape, Precision) {
  check("linear_workspace", shape);
  const int64_t forward_count = forward_parts(shape), data_count = backward_data_parts(shape);
  const int64_t forward = forward_count > 1 ? forward_count * shape.N * shape.K : 0;
  const int64_t data = data_count > 1 ? data_count * shape.N * shape.C : 0;
  const int64_t bias = shape.N / shape.lanes * round_up(shape.K, 4);
  return std::max({forward, data, bias}) * int64_t{sizeof(float)};
}

void linear_forward(const LinearShape& shape,
                    Precision precision,
                    const void* x,
                    const void* weight,
                    const float* bias,
                    void* y,
                    bool relu,
                    float* workspace,
                    Stream stream) {
  check("linear_forward", shape);
  require(precision == Precision::fp32, "linear_forward: tf32 and bf16 are not built yet");
  run_product("linear_forward", tile_for(kForward, shape.K, shape.N), shape, shape.K, shape.C,
              forward_parts(shape), static_cast<const float*>(weight), static_cast<const float*>(x),
              bias, relu, static_cast<float*>(y), workspace, stream);
}

void linear_backward_data(const LinearShape& shape,
                          Precision precision,
                          const void* dy,
                          const void* weight,
                          void* dx,
                          float* workspace,
                          Stream stream) {
  check("linear_backward_data", shape);
  require(precision == Precision::fp32, "linear_backward_data: tf32 and bf16 are not built yet");
  run_product("linear_backward_data", tile_for(kBackwardData, shape.C, shape.N), shape, shape.C,
              shape.K, backward_data_parts(shape), static_cast<const float*>(weight),
              static_cast<const float*>(dy), nullptr, false, static_cast<float*>(dx), workspace,
              stream);
}

void linear_backward_filter(const LinearShape& shape,
                            Precision precision,
                            const void* dy,
                            const void* x,
                            float* dweight,
                            float* dbias,
                            float* workspace,
                            Stream stream) {
  check("linear_backward_filter", shape);
  require(precision == Precision::fp32, "linear_backward_filter: tf32 and bf16 are not built yet");
  const auto& chosen = best_rows(kBackwardFilter, shape.K);
  const Dim3 grid = output_grid("linear_backward_filter", chosen, shape.K, shape.C, 1);
  launch(chosen.kernel, grid, Dim3(chosen.threads), chosen.shared_bytes, stream, int(shape.K),
         int(shape.C), int(shape.lanes), int(shape.N), static_cast<const float*>(dy),
         static_cast<const float*>(x), dweight);
  if (dbias)
    sum_rows(shape.N / shape.lanes, shape.K, shape.lanes, static_cast<const float*>(dy), dbias,
             workspace, stream);
}

}  // namespace convnet
