// Hyperbolic tangent.
//
// What       forward y = tanh(x); backward dx = dy * (1 - y * y), where y is the output, each operation
//            rounded on its own. Not part of any product's epilogue: it serves the comparison with
//            ReLU, behind a product without activation.
// Tensors    count contiguous values by precision, any layout; in place allowed.
// Work       one thread per four values, 256 threads per block; the last thread takes what is left.
// Shared     none.
// Barriers   none.
// Needs      16-byte aligned arrays.
// Cost       8 bytes per value forward, 12 backward, half of it in bf16; about 30 instructions per
//            value forward, which is beside the bytes: bound by memory.
#include "tanh.hpp"

#include "arch/arch.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
    tanh_forward_kernel(int64_t count, const T* x, T* y) {
  begin_kernel();
  map(count, x, y, [](float value) { return tanhf(value); });
}

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
    tanh_backward_kernel(int64_t count, const T* dy, const T* y, T* dx) {
  begin_kernel();
  map(count, dy, y, dx,
      [](float slope, float value) { return mul_rn(slope, sub_rn(1.0f, mul_rn(value, value))); });
}

}  // namespace

void tanh_forward(int64_t count, Precision precision, const void* x, void* y, Stream stream) {
  const Dim3 grid = map_grid("tanh_forward", count);
  if (count == 0) return;
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(tanh_forward_kernel<T>, grid, Dim3(kQuadThreads), 0, stream, count,
           static_cast<const T*>(x), static_cast<T*>(y));
  });
}

void tanh_backward(
    int64_t count, Precision precision, const void* dy, const void* y, void* dx, Stream stream) {
  const Dim3 grid = map_grid("tanh_backward", count);
  if (count == 0) return;
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(tanh_backward_kernel<T>, grid, Dim3(kQuadThreads), 0, stream, count,
           static_cast<const T*>(dy), static_cast<const T*>(y), static_cast<T*>(dx));
  });
}

}  // namespace convnet
