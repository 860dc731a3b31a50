// Sum of two arrays, product with a number.
//
// What       add: y = a + b; scale: y = x * factor. They join the towers' gradients and put
//            dropout's factor in at test time.
// Tensors    count contiguous float32 values, any layout; in place allowed.
// Work       one thread per four values, 256 threads per block; the last thread takes what is left.
// Shared     none.
// Barriers   none.
// Needs      16-byte aligned arrays.
// Cost       12 bytes per value for add, 8 for scale: bound by memory.
#include "pointwise.hpp"

#include "arch/arch.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

__global__ void __launch_bounds__(kQuadThreads)
    add_kernel(int64_t count, const float* a, const float* b, float* y) {
  map(count, a, b, y, [](float u, float v) { return u + v; });
}

__global__ void __launch_bounds__(kQuadThreads)
    scale_kernel(int64_t count, const float* x, float factor, float* y) {
  map(count, x, y, [factor](float value) { return value * factor; });
}

}  // namespace

void add(int64_t count, const float* a, const float* b, float* y, Stream stream) {
  const Dim3 grid = map_grid("add", count);
  if (count == 0) return;
  launch(add_kernel, grid, Dim3(kQuadThreads), 0, stream, count, a, b, y);
}

void scale(int64_t count, const float* x, float factor, float* y, Stream stream) {
  const Dim3 grid = map_grid("scale", count);
  if (count == 0) return;
  launch(scale_kernel, grid, Dim3(kQuadThreads), 0, stream, count, x, factor, y);
}

}  // namespace convnet
