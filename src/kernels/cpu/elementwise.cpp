// ReLU, tanh, sums and factors: every value alone.
#include <cmath>
#include <cstring>

#include "../pointwise.hpp"
#include "../relu.hpp"
#include "../tanh.hpp"
#include "checks.hpp"
#include "level.hpp"
#include "work.hpp"

namespace convnet {
namespace {

// y[i] = value(a[i], b[i]); b may be a where one operand is enough.
template <class Value>
void every(int64_t count, const void* a, const void* b, void* y, const Value& value) {
  cpu::in_pieces(count, cpu::kPiece, [&](int64_t first, int64_t last) {
    cpu::vectorised([&]() CONVNET_INLINE {
      const float* const one = static_cast<const float*>(a);
      const float* const two = static_cast<const float*>(b);
      float* const result = static_cast<float*>(y);
      for (int64_t i = first; i < last; ++i) result[i] = value(one[i], two[i]);
    });
  });
}

// Near 0 an odd polynomial (Cephes, S. Moshier), else 1 - 2 / (e^2|x| + 1), e^z = 2^n e^r with |r| <= ln 2 / 2.
CONVNET_INLINE inline float tanh_of(float x) {
  const float size = x < 0.0f ? -x : x;
  const float square = x * x;
  float odd = -5.70498872745e-3f;
  odd = odd * square + 2.06390887954e-2f;
  odd = odd * square - 5.37397155531e-2f;
  odd = odd * square + 1.33314422036e-1f;
  odd = odd * square - 3.33332819422e-1f;
  odd = odd * square * x + x;
  const float z = 2.0f * (size < 10.0f ? size : 10.0f);  // behind that tanh is 1
  const float n =
      (z * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // rounded to a whole number
  const float r = (z - n * 0.693359375f) + n * 2.12194440e-4f;
  float power = 1.9875691500e-4f;
  power = power * r + 1.3981999507e-3f;
  power = power * r + 8.3334519073e-3f;
  power = power * r + 4.1665795894e-2f;
  power = power * r + 1.6666665459e-1f;
  power = power * r + 5.0000001201e-1f;
  power = power * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  const float far = 1.0f - 2.0f / (power * scale + 1.0f);
  const float result = size < 0.625f ? odd : x < 0.0f ? -far : far;
  return square > 0.0f ? result : x;  // 0 keeps its sign, and NaN stays
}

}  // namespace

void relu_forward(int64_t count, Precision precision, const void* x, void* y, Stream) {
  cpu::check_count("relu_forward", precision, count);
  every(count, x, x, y, [](float a, float) CONVNET_INLINE { return a <= 0.0f ? 0.0f : a; });
}

void relu_backward(
    int64_t count, Precision precision, const void* dy, const void* y, void* dx, Stream) {
  cpu::check_count("relu_backward", precision, count);
  every(count, dy, y, dx, [](float a, float b) CONVNET_INLINE { return b > 0.0f ? a : 0.0f; });
}

void tanh_forward(int64_t count, Precision precision, const void* x, void* y, Stream) {
  cpu::check_count("tanh_forward", precision, count);
  every(count, x, x, y, [](float a, float) CONVNET_INLINE { return tanh_of(a); });
}

void tanh_backward(
    int64_t count, Precision precision, const void* dy, const void* y, void* dx, Stream) {
  cpu::check_count("tanh_backward", precision, count);
  every(count, dy, y, dx, [](float a, float b) CONVNET_INLINE { return a * (1.0f - b * b); });
}

void add(int64_t count, Precision precision, const void* a, const void* b, void* y, Stream) {
  cpu::check_count("add", precision, count);
  every(count, a, b, y, [](float one, float two) CONVNET_INLINE { return one + two; });
}

void scale(int64_t count, Precision precision, const void* x, float factor, void* y, Stream) {
  cpu::check_count("scale", precision, count);
  every(count, x, x, y, [=](float a, float) CONVNET_INLINE { return a * factor; });
}

}  // namespace convnet
