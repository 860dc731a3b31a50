// Activations, sums and factors: every value alone.
#include <cmath>
#include <cstring>

#include "../activation.hpp"
#include "../pointwise.hpp"
#include "../relu.hpp"
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

// e^x for x from -87 to 88: 2^n e^r with |r| <= ln 2 / 2, and a polynomial (Cephes, S. Moshier).
CONVNET_INLINE inline float exp_of(float x) {
  const float n =
      (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // rounded to a whole number
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
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
  return power * scale;
}

// Near 0 an odd polynomial (also Cephes'), else 1 - 2 / (e^2|x| + 1).
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
  const float far = 1.0f - 2.0f / (exp_of(z) + 1.0f);
  const float result = size < 0.625f ? odd : x < 0.0f ? -far : far;
  return square > 0.0f ? result : x;  // 0 keeps its sign, and NaN stays
}

// e^-|x|, 0 from 87 on; NaN is as good as 0.
CONVNET_INLINE inline float fading(float x) {
  const float size = x < 0.0f ? -x : x;
  const bool seen = size < 87.0f;
  const float power = exp_of(seen ? -size : 0.0f);
  return seen ? power : 0.0f;
}

CONVNET_INLINE inline float logistic_of(float x) {
  const float e = fading(x);
  return x == x ? (x < 0.0f ? e : 1.0f) / (1.0f + e) : x;
}

// log(1 + e), e from 0 to 1. The sum s = 1 + e has lost digits of e, which e - (s - 1) are; log s = log m + n log 2 with m
// from sqrt(1/2) on, and a polynomial for log m (Cephes).
CONVNET_INLINE inline float log1p_of(float e) {
  const float s = 1.0f + e;
  const bool halved = s > 1.41421356f;
  const float x = (halved ? 0.5f * s : s) - 1.0f;
  float p = 7.0376836292e-2f;
  p = p * x - 1.1514610310e-1f;
  p = p * x + 1.1676998740e-1f;
  p = p * x - 1.2420140846e-1f;
  p = p * x + 1.4249322787e-1f;
  p = p * x - 1.6668057665e-1f;
  p = p * x + 2.0000714765e-1f;
  p = p * x - 2.4999993993e-1f;
  p = p * x + 3.3333331174e-1f;
  const float square = x * x;
  float rest = p * square * x - 0.5f * square;
  rest = halved ? rest - 2.12194440e-4f : rest;
  const float log = (x + rest) + (halved ? 0.693359375f : 0.0f);
  return log + (e - (s - 1.0f)) / s;
}

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)
CONVNET_INLINE inline float softrelu_of(float x) {
  const float far = (x > 0.0f ? x : 0.0f) + log1p_of(fading(x));
  return x > kSoftreluIsLinear || x != x ? x : far;
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

void activation_forward(int64_t count,
                        Precision precision,
                        Activation kind,
                        float a,
                        float b,
                        const void* x,
                        void* y,
                        Stream stream) {
  check_activation("activation_forward", kind, a, b);
  cpu::check_count("activation_forward", precision, count);
  const auto each = [&](const auto& value) { every(count, x, x, y, value); };
  switch (kind) {
    case Activation::relu:
      return relu_forward(count, precision, x, y, stream);
    case Activation::tanh:
      return each([=](float v, float) CONVNET_INLINE { return a * tanh_of(b * v); });
    case Activation::logistic:
      return each([](float v, float) CONVNET_INLINE { return logistic_of(v); });
    case Activation::linear:
      return each([=](float v, float) CONVNET_INLINE { return a * v + b; });
    case Activation::softrelu:
      return each([](float v, float) CONVNET_INLINE { return softrelu_of(v); });
    case Activation::brelu:
      return each([=](float v, float) CONVNET_INLINE { return v <= 0.0f ? 0.0f : v >= a ? a : v; });
    case Activation::abs:
      return each([](float v, float) CONVNET_INLINE { return std::fabs(v); });
    case Activation::square:
      return each([](float v, float) CONVNET_INLINE { return v * v; });
    case Activation::sqrt:
      return each([](float v, float) CONVNET_INLINE { return std::sqrt(v); });
  }
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
  check_activation("activation_backward", kind, a, b);
  cpu::check_count("activation_backward", precision, count);
  const auto each = [&](const auto& value) { every(count, dy, saved ? saved : dy, dx, value); };
  const float product = a * b, ratio = b / a;
  switch (kind) {
    case Activation::relu:
      return relu_backward(count, precision, dy, saved, dx, stream);
    case Activation::tanh:
      return each([=](float d, float y) CONVNET_INLINE { return d * (product - y * y * ratio); });
    case Activation::logistic:
      return each([](float d, float y) CONVNET_INLINE { return d * (y * (1.0f - y)); });
    case Activation::linear:
      return each([=](float d, float) CONVNET_INLINE { return d * a; });
    case Activation::softrelu:
      return each([](float d, float x)
                      CONVNET_INLINE { return x > kSoftreluIsLinear ? d : d * logistic_of(x); });
    case Activation::brelu:
      return each([=](float d, float x) CONVNET_INLINE { return x > 0.0f && x < a ? d : 0.0f; });
    case Activation::abs:
      return each([](float d, float x) CONVNET_INLINE { return x > 0.0f ? d : -d; });
    case Activation::square:
      return each([](float d, float x) CONVNET_INLINE { return d * (2.0f * x); });
    case Activation::sqrt:
      return each([](float d, float y) CONVNET_INLINE { return d / (2.0f * y); });
  }
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
