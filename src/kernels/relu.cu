// Rectified linear unit.
//
// What       forward y = max(x, 0); backward dx = dy if y > 0 else 0. The fused form lives in the
//            epilogues of the convolutions and linear layers; this file serves the gradients and
//            convnet.functional.
// Tensors    count contiguous float32 values, any layout; in place allowed.
// Work       one thread per four values, 256 threads per block; the last thread takes what is left.
// Shared     none.
// Barriers   none.
// Needs      16-byte aligned arrays.
// Cost       8 bytes per value forward, 12 backward: bound by memory.
#include "relu.hpp"

#include "arch/arch.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

__global__ void __launch_bounds__(kQuadThreads)
    relu_forward_kernel(int64_t count, const float* x, float* y) {
  map(count, x, y, [](float value) { return value <= 0.0f ? 0.0f : value; });
}

__global__ void __launch_bounds__(kQuadThreads)
    relu_backward_kernel(int64_t count, const float* dy, const float* y, float* dx) {
  map(count, dy, y, dx, [](float slope, float value) { return value > 0.0f ? slope : 0.0f; });
}

}  // namespace

void relu_forward(int64_t count, const float* x, float* y, Stream stream) {
  const Dim3 grid = map_grid("relu_forward", count);
  if (count == 0) return;
  launch(relu_forward_kernel, grid, Dim3(kQuadThreads), 0, stream, count, x, y);
}

void relu_backward(int64_t count, const float* dy, const float* y, float* dx, Stream stream) {
  const Dim3 grid = map_grid("relu_backward", count);
  if (count == 0) return;
  launch(relu_backward_kernel, grid, Dim3(kQuadThreads), 0, stream, count, dy, y, dx);
}

}  // namespace convnet
