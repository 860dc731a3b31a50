// Sums and maxima of two arrays, product with a number.
//
// What       add: y = a + b; scale: y = x * factor. They join the towers' gradients and put
//            dropout's factor in at test time. weighted_add: y = (alpha * a) + (beta * b); maximum: y
//            = max(a, b), its backward dx = dy where x = y, else 0. They join layers.
// Tensors    count contiguous values by precision, any layout; in place allowed.
// Work       one thread per four values, 256 threads per block; the last thread takes what is left.
// Shared     none.
// Barriers   none.
// Needs      16-byte aligned arrays.
// Cost       12 bytes per value for sums and maxima, 8 for scale, 16 for maximum's backward, half of
//            it in bf16: bound by memory.
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

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
    weighted_add_kernel(int64_t count, const T* a, float alpha, const T* b, float beta, T* y) {
  begin_kernel();
  map(count, a, b, y, [=](float u, float v) { return add_rn(mul_rn(alpha, u), mul_rn(beta, v)); });
}

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
    maximum_kernel(int64_t count, const T* a, const T* b, T* y) {
  begin_kernel();
  map(count, a, b, y, [](float u, float v) { return u > v || u != u ? u : v; });
}

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
    maximum_backward_kernel(int64_t count, const T* dy, const T* x, const T* y, T* dx) {
  begin_kernel();
  map(count, dy, x, y, dx, [](float slope, float u, float v) { return u == v ? slope : 0.0f; });
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

void weighted_add(int64_t count,
                  Precision precision,
                  const void* a,
                  float alpha,
                  const void* b,
                  float beta,
                  void* y,
                  Stream stream) {
  const Dim3 grid = map_grid("weighted_add", count);
  if (count == 0) return;
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(weighted_add_kernel<T>, grid, Dim3(kQuadThreads), 0, stream, count,
           static_cast<const T*>(a), alpha, static_cast<const T*>(b), beta, static_cast<T*>(y));
  });
}

void maximum(
    int64_t count, Precision precision, const void* a, const void* b, void* y, Stream stream) {
  const Dim3 grid = map_grid("maximum", count);
  if (count == 0) return;
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(maximum_kernel<T>, grid, Dim3(kQuadThreads), 0, stream, count, static_cast<const T*>(a),
           static_cast<const T*>(b), static_cast<T*>(y));
  });
}

void maximum_backward(int64_t count,
                      Precision precision,
                      const void* dy,
                      const void* x,
                      const void* y,
                      void* dx,
                      Stream stream) {
  const Dim3 grid = map_grid("maximum_backward", count);
  if (count == 0) return;
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(maximum_backward_kernel<T>, grid, Dim3(kQuadThreads), 0, stream, count,
           static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const T*>(y),
           static_cast<T*>(dx));
  });
}

}  // namespace convnet
