// Costs of all features of an image, some lanes at a time, features in ascending order.
#include "../costs.hpp"

#include <algorithm>
#include <cmath>

#include "checks.hpp"
#include "exponentials.hpp"
#include "level.hpp"
#include "work.hpp"

namespace convnet {
namespace {

constexpr int64_t kLanesOfTask = 64;

template <class Term, class Slope>
void cost(const char* op,
          const SoftmaxShape& shape,
          Precision precision,
          float coefficient,
          const void* x,
          const void* targets,
          float* losses,
          void* dx,
          Control* control,
          const Term& term,
          const Slope& slope) {
  cpu::check(op, precision, shape);
  const int64_t L = shape.lanes, K = shape.K, cuts = (L + kLanesOfTask - 1) / kLanesOfTask;
  cpu::in_parallel(shape.N / L * cuts, [&](int64_t index) {
    const int64_t block = index / cuts, first = index % cuts * kLanesOfTask,
                  n = std::min(L - first, kLanesOfTask), at = block * K * L + first;
    const float* const from = static_cast<const float*>(x) + at;
    const float* const wanted = static_cast<const float*>(targets) + at;
    float* const to = dx ? static_cast<float*>(dx) + at : nullptr;
    float* const loss = losses + block * L + first;
    const int64_t exist = std::clamp(shape.valid - (block * L + first), int64_t{0}, n);
    cpu::vectorised([&]() CONVNET_INLINE {
      for (int64_t i = 0; i < n; ++i) loss[i] = 0.0f;
      for (int64_t k = 0; k < K; ++k)
        for (int64_t i = 0; i < exist; ++i) loss[i] += term(from[k * L + i], wanted[k * L + i]);
      if (to)
        for (int64_t k = 0; k < K; ++k) {
          for (int64_t i = 0; i < exist; ++i)
            to[k * L + i] = coefficient * slope(from[k * L + i], wanted[k * L + i]) /
                            static_cast<float>(shape.valid);
          for (int64_t i = exist; i < n; ++i) to[k * L + i] = 0.0f;
        }
    });
    for (int64_t i = 0; i < exist; ++i)
      if (!std::isfinite(loss[i])) __atomic_store_n(&control->stopped, 1u, __ATOMIC_RELAXED);
  });
}

}  // namespace

void sum_of_squares(const SoftmaxShape& shape,
                    Precision precision,
                    float coefficient,
                    const void* x,
                    float* losses,
                    void* dx,
                    Control* control,
                    Stream) {
  cost(
      "sum_of_squares", shape, precision, coefficient, x, x, losses, dx, control,
      [](float v, float) CONVNET_INLINE { return v * v; },
      [](float v, float) CONVNET_INLINE { return 2.0f * v; });
}

void logistic_cross_entropy(const SoftmaxShape& shape,
                            Precision precision,
                            float coefficient,
                            const void* x,
                            const void* targets,
                            float* losses,
                            void* dx,
                            Control* control,
                            Stream) {
  cost(
      "logistic_cross_entropy", shape, precision, coefficient, x, targets, losses, dx, control,
      [](float v, float t) CONVNET_INLINE {
        const float rest = v == v ? cpu::log1p_of(cpu::fading(v)) : v;  // of the likelier side
        const float one = v < 0.0f ? rest - v : rest, zero = v < 0.0f ? rest : rest + v;
        return t * (one > kLeastLog ? kLeastLog : one) +
               (1.0f - t) * (zero > kLeastLog ? kLeastLog : zero);
      },
      [](float v, float t) CONVNET_INLINE { return cpu::logistic_of(v) - t; });
}

}  // namespace convnet
