// Costs of all features of an image, some lanes at a time, features in ascending order.
#include "../costs.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "checks.hpp"
#include "exponentials.hpp"
#include "level.hpp"
#include "work.hpp"

namespace convnet {
namespace {

constexpr int64_t kLanesOfTask = 64;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// At most kLeastLog; NaN stays.
CONVNET_INLINE inline float at_most(float v) { return v > kLeastLog ? kLeastLog : v; }

// What should be 1; NaN where x is no probability.
CONVNET_INLINE inline float right(float x, float t) {
  return x >= 0.0f && x <= 1.0f ? (t == 1.0f ? x : 1.0f - x) : kNaN;
}

}  // namespace

void cost(const SoftmaxShape& shape,
          Precision precision,
          Cost kind,
          float coefficient,
          const void* x,
          const int32_t* labels,
          float* losses,
          void* dx,
          Control* control,
          Stream) {
  cpu::check("cost", precision, shape);
  require(labels || kind == Cost::squares, "cost: labels are required for all but squares");
  const auto images = static_cast<float>(control->images ? control->images : shape.valid);
  const int64_t L = shape.lanes, K = shape.K, cuts = (L + kLanesOfTask - 1) / kLanesOfTask;
  // term and slope are functions of x and of t, which is 1 or 0.
  const auto each = [&](const auto& term, const auto& slope) {
    cpu::in_parallel(shape.N / L * cuts, [&](int64_t index) {
      const int64_t block = index / cuts, first = index % cuts * kLanesOfTask,
                    n = std::min(L - first, kLanesOfTask), at = block * K * L + first,
                    image = block * L + first;
      const float* const from = static_cast<const float*>(x) + at;
      float* const to = dx ? static_cast<float*>(dx) + at : nullptr;
      float* const loss = losses + image;
      const int64_t exist = std::clamp(shape.valid - image, int64_t{0}, n);
      int32_t label[kLanesOfTask];
      for (int64_t i = 0; i < exist; ++i) label[i] = labels ? labels[image + i] : 0;
      cpu::vectorised([&]() CONVNET_INLINE {
        for (int64_t i = 0; i < n; ++i) loss[i] = 0.0f;
        for (int64_t k = 0; k < K; ++k)
          for (int64_t i = 0; i < exist; ++i)
            loss[i] += term(from[k * L + i], label[i] == k ? 1.0f : 0.0f);
        for (int64_t i = 0; i < exist; ++i)
          if (label[i] < 0 || label[i] >= K) loss[i] = kNaN;
        if (to)
          for (int64_t k = 0; k < K; ++k) {
            for (int64_t i = 0; i < exist; ++i) {
              const float down =
                  coefficient * slope(from[k * L + i], label[i] == k ? 1.0f : 0.0f) / images;
              to[k * L + i] = label[i] >= 0 && label[i] < K ? down : kNaN;
            }
            for (int64_t i = exist; i < n; ++i) to[k * L + i] = 0.0f;
          }
      });
      for (int64_t i = 0; i < exist; ++i)
        if (!std::isfinite(loss[i])) __atomic_store_n(&control->stopped, 1u, __ATOMIC_RELAXED);
    });
  };
  switch (kind) {
    case Cost::squares:
      return each([](float v, float) CONVNET_INLINE { return v * v; },
                  [](float v, float) CONVNET_INLINE { return 2.0f * v; });
    case Cost::squared_error:
      return each([](float v, float t) CONVNET_INLINE { return (v - t) * (v - t); },
                  [](float v, float t) CONVNET_INLINE { return 2.0f * (v - t); });
    case Cost::log_squared_error:
      return each([](float v, float t) CONVNET_INLINE { return std::log1p((v - t) * (v - t)); },
                  [](float v, float t)
                      CONVNET_INLINE { return 2.0f * (v - t) / (1.0f + (v - t) * (v - t)); });
    case Cost::cross_entropy:
      return each([](float v, float t) CONVNET_INLINE { return at_most(-std::log(right(v, t))); },
                  [](float v, float t) CONVNET_INLINE {
                    const float p = right(v, t);
                    return -std::log(p) > kLeastLog ? 0.0f : (t == 1.0f ? -1.0f : 1.0f) / p;
                  });
    case Cost::logistic_cross_entropy:
      return each(
          [](float v, float t) CONVNET_INLINE {
            const float rest = v == v ? cpu::log1p_of(cpu::fading(v)) : v;  // of the likelier side
            return at_most((v < 0.0f) == (t == 1.0f) ? rest + std::fabs(v) : rest);
          },
          [](float v, float t) CONVNET_INLINE { return cpu::logistic_of(v) - t; });
  }
}

}  // namespace convnet
