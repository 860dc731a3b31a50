// The paper's update of some values, each operation rounded on its own (sgd.hpp).
#pragma once
#include <cstdint>
#include <cstring>

#include "../control.hpp"
#include "level.hpp"

namespace convnet::cpu {

struct Rates {
  float lr, momentum, decay;
  Rates(const Control& control, const Factors& factors)
      : lr(control.lr * factors.rate),
        momentum(control.momentum * factors.momentum),
        decay(control.weight_decay * factors.decay) {}
};

// Where a gradient is not finite, weight and velocity stay as they are; whether all were finite.
CONVNET_INLINE inline bool update(
    int64_t count, float* weight, float* velocity, const float* gradient, Rates rates) {
  uint32_t spoiled = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float w = weight[i], v = velocity[i], g = gradient[i];
    uint32_t bits;
    std::memcpy(&bits, &g, sizeof bits);
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    spoiled |= finite ? 0u : 1u;
    const float decaying = rates.decay == 0.0f ? 0.0f : w;
    const float moved = rates.momentum * v - rates.lr * (rates.decay * decaying + g);
    velocity[i] = finite ? moved : v;
    weight[i] = finite ? w + moved : w;
  }
  return spoiled == 0;
}

// Threads may say so at the same time.
inline void spoil(Control* control) { __atomic_store_n(&control->spoiled, 1u, __ATOMIC_RELAXED); }

}  // namespace convnet::cpu
