// The weight of a folded convolution, and its gradient back again.
//
// What       A convolution of stride s without padding is one of stride 1 on an image folded s x s,
//            in which pixel (i, j) of channel c is pixel (i/s, j/s) of channel c*s*s + i%s*s + j%s:
//            its taps fold alike, tap (r, t) of channel c to tap (r/s, t/s) of channel c*s*s +
//            r%s*s + t%s. fold_weight moves the values there, rounded in bf16, and writes zero
//            where a tap has no original, and in the padding; unfold_gradient reads from there.
// Tensors    weight, gradient float32 [g][C/g][R][S][K/g]; copy bf16 [g][C/g*s*s][R'][S'][K8] with
//            K8 = round_up(K/g, 8), in other precisions float32 without padding, as is folded:
//            [g][C/g*s*s][R'][S'][K/g]; R' = ceil(R/s), S' = ceil(S/s).
// Work       one thread per four neighbouring values of a row of the copy, one per value of the
//            gradient, 256 threads per block.
// Shared     none.
// Barriers   none.
// Needs      groups that divide C and K; 16-byte aligned arrays.
// Cost       6 or 8 and 8 bytes per value of a first layer's weight: bound by the launch.
#include "fold.hpp"

#include "arch/arch.cuh"
#include "tile/folding.cuh"
#include "tile/quads.cuh"
#include "tile/weight_copy.cuh"

namespace convnet {
namespace {

// `columns`: of a row of the copy.
template <class T>
__global__ void __launch_bounds__(kQuadThreads) fold_weight_kernel(
    int64_t count, Folding f, CopyRows rows, int64_t columns, const float* weight, T* copy) {
  begin_kernel();
  const int64_t i = map_index();  // in a copy whose rows are padded to whole quads
  if (i >= count) return;
  const int64_t row = i / rows.padded;
  const int64_t line = row / f.folded_S, plane = line / f.folded_R, c = plane / (f.s * f.s);
  const int phase = static_cast<int>(plane - c * (f.s * f.s));
  const int r = static_cast<int>(line - plane * f.folded_R) * f.s + phase / f.s;
  const int t = static_cast<int>(row - line * f.folded_S) * f.s + phase % f.s;
  float4 quad{0.0f, 0.0f, 0.0f, 0.0f};
  const int64_t k = i - row * rows.padded;
  if (r < f.R && t < f.S)
    quad = load_row4(weight + ((c * f.R + r) * f.S + t) * rows.columns, rows, k);
  T* target = copy + row * columns + k;
  if (columns % 4 == 0) {
    if (k < columns) store4(target, quad);
    return;
  }
  const float value[4] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (k + j < columns) store1(target + j, value[j]);
}

__global__ void __launch_bounds__(kQuadThreads) unfold_gradient_kernel(
    int64_t count, Folding f, int64_t columns, const float* folded, float* gradient) {
  begin_kernel();
  const int64_t i = int64_t{blockIdx.x} * kQuadThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t row = i / columns;
  gradient[i] = folded[f.place(row) * columns + (i - row * columns)];
}

}  // namespace

void fold_weight(
    const ConvShape& shape, Precision precision, const float* weight, void* copy, Stream stream) {
  const char* op = "fold_weight";
  const Folding f = folding(op, shape);
  const int64_t columns = shape.K / shape.groups;
  const CopyRows rows = copy_rows(op, columns, columns);
  const int64_t count = shape.C * f.s * f.s * f.folded_R * f.folded_S * rows.padded;
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(fold_weight_kernel<T>, map_grid(op, count), Dim3(kQuadThreads), 0, stream, count, f,
           rows, precision == Precision::bf16 ? rows.padded : columns, weight,
           static_cast<T*>(copy));
  });
}

void unfold_gradient(const ConvShape& shape, const float* folded, float* gradient, Stream stream) {
  const char* op = "unfold_gradient";
  const Folding f = folding(op, shape);
  const int64_t columns = shape.K / shape.groups;
  const int64_t count = shape.C * f.R * f.S * columns;
  const int64_t blocks = (count + kQuadThreads - 1) / kQuadThreads;
  require(blocks <= kMaxGrid, op, ": the weight is too large for one launch, got ", count,
          " values");
  launch(unfold_gradient_kernel, Dim3(static_cast<unsigned>(blocks)), Dim3(kQuadThreads), 0, stream,
         count, f, columns, folded, gradient);
}

}  // namespace convnet
