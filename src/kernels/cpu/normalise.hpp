// Local response normalisation of a run of pixels and lanes (lrn.hpp): all channels of a group lie `step` values apart.
#pragma once
#include <cmath>
#include <cstdint>

#include "../shapes.hpp"
#include "level.hpp"

namespace convnet::cpu {

// Channels `begin` to `end` of a group of `channels`; a run of them may be a task of its own.
struct Channels {
  int64_t channels, step;  // x of channel c is at x + c * step
  int64_t begin, end;
};

template <int kCount>
CONVNET_INLINE inline void sum_of_squares(const float* x, int64_t step, int64_t n, float* sum) {
  for (int64_t i = 0; i < n; ++i) {
    float total = x[i] * x[i];
    for (int j = 1; j < kCount; ++j) total += x[j * step + i] * x[j * step + i];
    sum[i] = total;
  }
}

// d of channel c: k + alpha * the sum of the squares in its window, in the order of channels.
CONVNET_INLINE inline void divisors(
    const LrnShape& shape, const Channels& at, const float* x, int64_t c, int64_t n, float* d) {
  const int64_t low = c - shape.size / 2, first = low > 0 ? low : 0;
  const int64_t last = low + shape.size < at.channels ? low + shape.size : at.channels;
  const float* const from = x + first * at.step;
  if (last - first == 5) {
    sum_of_squares<5>(from, at.step, n, d);
  } else {
    sum_of_squares<1>(from, at.step, n, d);
    for (int64_t j = 1; j < last - first; ++j)
      for (int64_t i = 0; i < n; ++i) d[i] += from[j * at.step + i] * from[j * at.step + i];
  }
  for (int64_t i = 0; i < n; ++i) d[i] = shape.k + shape.alpha * d[i];
}

// d^beta; that of 3/4 takes only square roots.
CONVNET_INLINE inline void powers(float beta, int64_t n, const float* d, float* power) {
  if (beta == 0.75f) {
    for (int64_t i = 0; i < n; ++i) {
      const float root = std::sqrt(d[i]);
      power[i] = root * std::sqrt(root);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) power[i] = std::pow(d[i], beta);
  }
}

// y of channel c: n values; `memory`: 2 n floats.
CONVNET_INLINE inline void normalise(const LrnShape& shape,
                                     const Channels& at,
                                     const float* x,
                                     int64_t c,
                                     int64_t n,
                                     float* y,
                                     float* memory) {
  float* const d = memory;
  float* const power = memory + n;
  const float* const own = x + c * at.step;
  divisors(shape, at, x, c, n, d);
  powers(shape.beta, n, d, power);
  for (int64_t i = 0; i < n; ++i) y[i] = own[i] / power[i];
}

// Floats that lrn_gradient works in for a run of n values.
inline int64_t gradient_memory(const LrnShape& shape, int64_t n) {
  return (2 * shape.size + 3) * n;
}

// dx of channels at.begin to at.end. slope(f, to): dy of channel f, n values; positive: dx is 0 where x is not above 0.
// dx_i needs the terms t_f = dy_f x_f d_f^(-beta-1) of the channels f whose window holds i; the newest is that of
// i + size/2.
template <class Slope>
CONVNET_INLINE inline void lrn_gradient(const LrnShape& shape,
                                        const Channels& at,
                                        const float* x,
                                        int64_t n,
                                        const Slope& slope,
                                        float* dx,
                                        bool positive,
                                        float* memory) {
  const int64_t size = shape.size, before = size / 2, after = size - 1 - before;
  float* const terms = memory;              // a ring of `size` channels
  float* const direct = memory + size * n;  // dy d^-beta, a ring of `size` channels
  float* const d = memory + 2 * size * n;
  float* const power = d + n;
  float* const sum = power + n;
  const float factor = 2.0f * shape.alpha * shape.beta;
  const int64_t start = at.begin - after > 0 ? at.begin - after : 0;
  for (int64_t f = start; f < at.end + before; ++f) {
    if (f < at.channels) {
      float* const straight = direct + f % size * n;
      float* const term = terms + f % size * n;
      const float* const own = x + f * at.step;
      divisors(shape, at, x, f, n, d);
      powers(shape.beta, n, d, power);
      slope(f, straight);
      for (int64_t i = 0; i < n; ++i) {
        const float scaled = straight[i] / power[i];
        straight[i] = scaled;
        term[i] = scaled * (own[i] / d[i]);
      }
    }
    const int64_t c = f - before;
    if (c < at.begin) continue;
    const int64_t first = c - after > 0 ? c - after : 0;
    const int64_t last = c + before < at.channels ? c + before : at.channels - 1;
    for (int64_t i = 0; i < n; ++i) sum[i] = terms[first % size * n + i];
    for (int64_t g = first + 1; g <= last; ++g) {
      const float* const term = terms + g % size * n;
      for (int64_t i = 0; i < n; ++i) sum[i] += term[i];
    }
    const float* const own = x + c * at.step;
    const float* const straight = direct + c % size * n;
    float* const to = dx + c * at.step;
    if (positive)
      for (int64_t i = 0; i < n; ++i)
        to[i] = own[i] > 0.0f ? straight[i] - factor * (own[i] * sum[i]) : 0.0f;
    else
      for (int64_t i = 0; i < n; ++i) to[i] = straight[i] - factor * (own[i] * sum[i]);
  }
}

// How a group is cut: runs of pixels and lanes, and runs of channels, as many as make tasks for several threads.
constexpr int64_t kRun = 1024, kChannels = 32;

}  // namespace convnet::cpu
