// Rectified linear unit.
//
// What       forward y = max(x, 0); backward dx = dy if y > 0 else 0. The fused form lives in the
//            epilogues of the convolutions and linear layers; this file serves the gradients and
//            convnet.functional.
// Tensors    count contiguous values by precision, any layout; in place allowed.
// Work       one thread per four values, 256 threads per block; the last thread takes what is left.
// Shared     none.
// Barriers   none.
// Needs      16-byte aligned arrays.
// Cost       8 bytes per value forward, 12 backward, half of it in bf16: bound by memory.
#include "relu.hpp"

#include "arch/arch.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
    relu_forward_kernel(int64_t count, const T* x, T* y) {
  begin_kernel();
  map(count, x, y, [](float value) { return value <= 0.0f ? 0.0f : value; });
}

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
    relu_backward_kernel(int64_t count, const T* dy, const T* y, T* dx) {
  begin_kernel();
  map(count, dy, y, dx, [](float slope, float value) { return value > 0.0f ? slope : 0.0f; });
}

}  // namespace

void relu_forward(int64_t count, Precision precision, const void* x, void* y, Stream stream) {
  const Dim3 grid = map_grid("relu_forward", count);
  if (count == 0) return;
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(relu_forward_kernel<T>, grid, Dim3(kQuadThreads), 0, stream, count,
           static_cast<const T*>(x), static_cast<T*>(y));
  });
}

void relu_backward(
    int64_t count, Precision precision, const void* dy, const void* y, void* dx, Stream stream) {
  const Dim3 grid = map_grid("relu_backward", count);
  if (count == 0) return;
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(relu_backward_kernel<T>, grid, Dim3(kQuadThreads), 0, stream, count,
           static_cast<const T*>(dy), static_cast<const T*>(y), static_cast<T*>(dx));
  });
}

}  // namespace convnet
