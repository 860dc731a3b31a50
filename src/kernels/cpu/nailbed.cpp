// One pixel of every stride x stride, a map at a time.
#include "../nailbed.hpp"

#include <algorithm>

#include "checks.hpp"
#include "work.hpp"

namespace convnet {
namespace {

// The offset of y's pixel (p, q) in a map of x.
int64_t place(const NailbedShape& s, int64_t p, int64_t q) {
  return ((s.top + p * s.stride) * s.W + s.left + q * s.stride) * s.lanes;
}

}  // namespace

void nailbed_forward(
    const NailbedShape& shape, Precision precision, const void* x, void* y, Stream) {
  cpu::check("nailbed_forward", precision, shape);
  const int64_t L = shape.lanes, in = shape.H * shape.W * L, out = shape.P * shape.Q * L;
  cpu::in_parallel(shape.N / L * shape.C, [&](int64_t plane) {
    const float* const from = static_cast<const float*>(x) + plane * in;
    float* to = static_cast<float*>(y) + plane * out;
    for (int64_t p = 0; p < shape.P; ++p)
      for (int64_t q = 0; q < shape.Q; ++q, to += L) std::copy_n(from + place(shape, p, q), L, to);
  });
}

void nailbed_backward(
    const NailbedShape& shape, Precision precision, const void* dy, void* dx, Stream) {
  cpu::check("nailbed_backward", precision, shape);
  const int64_t L = shape.lanes, in = shape.H * shape.W * L, out = shape.P * shape.Q * L;
  cpu::in_parallel(shape.N / L * shape.C, [&](int64_t plane) {
    const float* from = static_cast<const float*>(dy) + plane * out;
    float* const to = static_cast<float*>(dx) + plane * in;
    std::fill_n(to, in, 0.0f);
    for (int64_t p = 0; p < shape.P; ++p)
      for (int64_t q = 0; q < shape.Q; ++q, from += L)
        std::copy_n(from, L, to + place(shape, p, q));
  });
}

}  // namespace convnet
