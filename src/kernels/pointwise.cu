// Sum of two arrays, product with a number.
//
// What       add: y = a + b; scale: y = x * factor. They join the towers' gradients and put
//            dropout's factor in at test time.
// Tensors    count contiguous values by precision, any layout; in place allowed.
// Work       one thread per four values, 256 threads per block; the last thread takes what is left.
// Shared     none.
// Barriers   none.
// Needs      16-byte aligned arrays.
// Cost       12 bytes per value for add, 8 for scale, half of it in bf16: bound by memory.
#include "pointwise.hpp"

#include "arch/arch.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
    add_kernel(int64_t count, const T* a, const T* b, T* y) {
  begin_kernel();
  map(count, a, b, y, [](float u, float v) { return u + v; });
}

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
    scale_kernel(int64_t count, const T* x, float factor, T* y) {
  begin_kernel();
  map(count, x, y, [factor](float value) { return value * factor; });
}

}  // namespace

void add(int64_t count, Precision precision, const void* a, const void* b, void* y, Stream stream) {
  const Dim3 grid = map_grid("add", count);
  if (count == 0) return;
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(add_kernel<T>, grid, Dim3(kQuadThreads), 0, stream, count, static_cast<const T*>(a),
           static_cast<const T*>(b), static_cast<T*>(y));
  });
}

void scale(
    int64_t count, Precision precision, const void* x, float factor, void* y, Stream stream) {
  const Dim3 grid = map_grid("scale", count);
  if (count == 0) return;
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(scale_kernel<T>, grid, Dim3(kQuadThreads), 0, stream, count, static_cast<const T*>(x),
           factor, static_cast<T*>(y));
  });
}

}  // namespace convnet
