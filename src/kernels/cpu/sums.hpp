// Sums that are the same whatever the vectors' width: sixteen at a time, then those sixteen in order.
#pragma once
#include <cstdint>

#include "level.hpp"

namespace convnet::cpu {

CONVNET_INLINE inline float sum_of(const float* values, int64_t n) {
  float sums[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) sums[j] += values[i + j];
  float total = 0.0f;
  for (; i < n; ++i) total += values[i];
  for (int j = 0; j < 16; ++j) total += sums[j];
  return total;
}

// total = parts[0] + parts[1] + ..., in this order; a part has `count` values.
CONVNET_INLINE inline void sum_in_order(
    const float* parts, int64_t many, int64_t count, int64_t first, int64_t last, float* total) {
  for (int64_t i = first; i < last; ++i) total[i] = parts[i];
  for (int64_t part = 1; part < many; ++part)
    for (int64_t i = first; i < last; ++i) total[i] += parts[part * count + i];
}

}  // namespace convnet::cpu
