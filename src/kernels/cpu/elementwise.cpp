// Activations, sums and factors: every value alone.
#include <cmath>

#include "../activation.hpp"
#include "../pointwise.hpp"
#include "../relu.hpp"
#include "checks.hpp"
#include "exponentials.hpp"
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
  const float far = 1.0f - 2.0f / (cpu::exp_of(z) + 1.0f);
  const float result = size < 0.625f ? odd : x < 0.0f ? -far : far;
  return square > 0.0f ? result : x;  // 0 keeps its sign, and NaN stays
}

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)
CONVNET_INLINE inline float softrelu_of(float x) {
  const float far = (x > 0.0f ? x : 0.0f) + cpu::log1p_of(cpu::fading(x));
  return x > kSoftreluIsLinear || x != x ? x : far;
}

void check(const char* op, Activation kind, float a, float b) {
  require(std::isfinite(a) && std::isfinite(b), op, ": a and b must be finite, got a=", a,
          " b=", b);
  require(kind != Activation::tanh || a != 0.0f, op, ": tanh needs an a that is not 0, got a=", a,
          "; leave out a layer that is 0 everywhere");
  require(kind != Activation::brelu || a > 0.0f, op, ": brelu needs an a above 0, got a=", a);
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
  check("activation_forward", kind, a, b);
  cpu::check_count("activation_forward", precision, count);
  const auto each = [&](const auto& value) { every(count, x, x, y, value); };
  switch (kind) {
    case Activation::relu:
      return relu_forward(count, precision, x, y, stream);
    case Activation::tanh:
      return each([=](float v, float) CONVNET_INLINE { return a * tanh_of(b * v); });
    case Activation::logistic:
      return each([](float v, float) CONVNET_INLINE { return cpu::logistic_of(v); });
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
  check("activation_backward", kind, a, b);
  require(saved || kind == Activation::linear, "activation_backward",
          ": saved may be null for linear alone");
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
      return each([](float d, float x) CONVNET_INLINE {
        return x > kSoftreluIsLinear ? d : d * cpu::logistic_of(x);
      });
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

void weighted_add(int64_t count,
                  Precision precision,
                  const void* a,
                  float alpha,
                  const void* b,
                  float beta,
                  void* y,
                  Stream) {
  cpu::check_count("weighted_add", precision, count);
  every(count, a, b, y, [=](float u, float v) CONVNET_INLINE { return alpha * u + beta * v; });
}

void maximum(int64_t count, Precision precision, const void* a, const void* b, void* y, Stream) {
  cpu::check_count("maximum", precision, count);
  every(count, a, b, y, [](float u, float v) CONVNET_INLINE { return u > v || u != u ? u : v; });
}

void maximum_backward(int64_t count,
                      Precision precision,
                      const void* dy,
                      const void* x,
                      const void* y,
                      void* dx,
                      Stream) {
  cpu::check_count("maximum_backward", precision, count);
  cpu::in_pieces(count, cpu::kPiece, [&](int64_t first, int64_t last) {
    cpu::vectorised([&]() CONVNET_INLINE {
      const float* const slope = static_cast<const float*>(dy);
      const float* const own = static_cast<const float*>(x);
      const float* const largest = static_cast<const float*>(y);
      float* const result = static_cast<float*>(dx);
      for (int64_t i = first; i < last; ++i) result[i] = own[i] == largest[i] ? slope[i] : 0.0f;
    });
  });
}

}  // namespace convnet
