// Softmax with cross-entropy loss, an image at a time.
#include "../softmax.hpp"

#include <cmath>
#include <limits>

#include "checks.hpp"
#include "work.hpp"

namespace convnet {

void softmax_cross_entropy(const SoftmaxShape& shape,
                           Precision precision,
                           const void* logits,
                           const int32_t* labels,
                           float* losses,
                           int32_t* ranks,
                           float* probs,
                           void* dlogits,
                           Control* control,
                           Stream) {
  cpu::check("softmax_cross_entropy", precision, shape);
  const int64_t K = shape.K, L = shape.lanes;
  const auto images = static_cast<float>(control->images ? control->images : shape.valid);
  cpu::in_parallel(shape.N, [&](int64_t image) {
    const int64_t at = image / L * K * L + image % L;  // of class 0
    const float* const x = static_cast<const float*>(logits) + at;
    float* const p = probs ? probs + at : nullptr;
    float* const dx = dlogits ? static_cast<float*>(dlogits) + at : nullptr;
    if (image >= shape.valid) {
      losses[image] = 0.0f, ranks[image] = 0;
      for (int64_t k = 0; k < K; ++k) {
        if (p) p[k * L] = 0.0f;
        if (dx) dx[k * L] = 0.0f;
      }
      return;
    }
    const int64_t label = labels[image];
    const bool known = label >= 0 && label < K;
    const float own = x[(known ? label : 0) * L];
    float largest = x[0];
    int32_t before = 0;
    for (int64_t k = 0; k < K; ++k) {
      const float value = x[k * L];
      largest = value > largest || value != value ? value : largest;
      // NaN is neither smaller nor equal
      if (k != label && !(value < own || (value == own && k > label))) ++before;
    }
    float* const exponentials = cpu::scratch(cpu::Scratch::columns, K);
    float total = 0.0f, rest = 0.0f;  // what rounding took off the sum, to be added with the next
    for (int64_t k = 0; k < K; ++k) {
      exponentials[k] = std::exp(x[k * L] - largest);
      const float term = exponentials[k] - rest, sum = total + term;
      rest = (sum - total) - term;
      total = sum;
    }
    constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
    const float loss = known ? std::log(total) - (own - largest) : kNaN;
    losses[image] = loss;
    ranks[image] = known ? before : static_cast<int32_t>(K);
    if (!std::isfinite(loss)) __atomic_store_n(&control->stopped, 1u, __ATOMIC_RELAXED);
    for (int64_t k = 0; k < K; ++k) {
      const float probability = exponentials[k] / total;
      if (p) p[k * L] = probability;
      if (dx) dx[k * L] = known ? (probability - (k == label ? 1.0f : 0.0f)) / images : kNaN;
    }
  });
}

}  // namespace convnet
