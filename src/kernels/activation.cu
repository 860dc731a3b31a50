// Activations.
//
// What       forward y = f(x); backward dx = dy f'(x), f' from x or y (activation.hpp has the table),
//            each operation rounded on its own. Not part of any product's epilogue: only ReLU is.
// Tensors    count contiguous values by precision, any layout; in place allowed.
// Work       one thread per four values, 256 threads per block; the last thread takes what is left.
//            All threads take the same branch, that of the kind.
// Shared     none.
// Barriers   none.
// Needs      16-byte aligned arrays; finite parameters, for tanh a not 0, for brelu a above 0.
// Cost       8 bytes per value forward, 12 backward, half of it in bf16; up to about 40 instructions
//            per value (tanh, softrelu), which is beside the bytes: bound by memory.
#include "activation.hpp"

#include <cmath>

#include "arch/arch.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

void check(const char* op, Activation kind, float a, float b) {
  require(std::isfinite(a) && std::isfinite(b), op, ": a and b must be finite, got a=", a,
          " b=", b);
  require(kind != Activation::tanh || a != 0.0f, op, ": tanh needs an a that is not 0, got a=", a,
          "; leave out a layer that is 0 everywhere");
  require(kind != Activation::brelu || a > 0.0f, op, ": brelu needs an a above 0, got a=", a);
}

__device__ __forceinline__ float logistic(float x) {
  const float e = expf(-fabsf(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

__device__ __forceinline__ float value_of(Activation kind, float a, float b, float x) {
  switch (kind) {
    case Activation::relu:
      return x <= 0.0f ? 0.0f : x;
    case Activation::tanh:
      return mul_rn(a, tanhf(mul_rn(b, x)));
    case Activation::logistic:
      return logistic(x);
    case Activation::linear:
      return add_rn(mul_rn(a, x), b);
    case Activation::softrelu:
      return x > kSoftreluIsLinear ? x : log1pf(expf(x));
    case Activation::brelu:
      return x <= 0.0f ? 0.0f : x >= a ? a : x;
    case Activation::abs:
      return fabsf(x);
    case Activation::square:
      return mul_rn(x, x);
    default:
      return sqrtf(x);
  }
}

__device__ __forceinline__ float gradient_of(
    Activation kind, float a, float b, float dy, float saved) {
  switch (kind) {
    case Activation::relu:
      return saved > 0.0f ? dy : 0.0f;
    case Activation::tanh:
      return mul_rn(dy, sub_rn(mul_rn(a, b), mul_rn(mul_rn(saved, saved), b / a)));
    case Activation::logistic:
      return mul_rn(dy, mul_rn(saved, sub_rn(1.0f, saved)));
    case Activation::linear:
      return mul_rn(dy, a);
    case Activation::softrelu:
      return saved > kSoftreluIsLinear ? dy : mul_rn(dy, logistic(saved));
    case Activation::brelu:
      return saved > 0.0f && saved < a ? dy : 0.0f;
    case Activation::abs:
      return saved > 0.0f ? dy : -dy;
    case Activation::square:
      return mul_rn(dy, 2.0f * saved);
    default:
      return dy / (2.0f * saved);
  }
}

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
    activation_forward_kernel(int64_t count, Activation kind, float a, float b, const T* x, T* y) {
  begin_kernel();
  map(count, x, y, [=](float value) { return value_of(kind, a, b, value); });
}

template <class T>
__global__ void __launch_bounds__(kQuadThreads) activation_backward_kernel(
    int64_t count, Activation kind, float a, float b, const T* dy, const T* saved, T* dx) {
  begin_kernel();
  map(count, dy, saved, dx,
      [=](float slope, float value) { return gradient_of(kind, a, b, slope, value); });
}

}  // namespace

void activation_forward(int64_t count,
                        Precision precision,
                        Activation kind,
                        float a,
                        float b,
                        const void* x,
                        void* y,
                        Stream stream) {
  check("activation_forward", kind, a, b);
  const Dim3 grid = map_grid("activation_forward", count);
  if (count == 0) return;
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(activation_forward_kernel<T>, grid, Dim3(kQuadThreads), 0, stream, count, kind, a, b,
           static_cast<const T*>(x), static_cast<T*>(y));
  });
}

void activation_backward(int64_t count,
                         Precision precision,
                         Activation kind,
                         float a,
                         float b,
                         const void* dy,
                         const void* saved,
                         void* dx,
                         Stream stream) {
  check("activation_backward", kind, a, b);
  require(saved || kind == Activation::linear, "activation_backward",
          ": saved may be null for linear alone");
  const Dim3 grid = map_grid("activation_backward", count);
  if (count == 0) return;
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(activation_backward_kernel<T>, grid, Dim3(kQuadThreads), 0, stream, count, kind, a, b,
           static_cast<const T*>(dy), static_cast<const T*>(saved ? saved : dy),
           static_cast<T*>(dx));
  });
}

}  // namespace convnet
