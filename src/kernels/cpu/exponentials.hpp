// Exponentials and what is made of them, in plain operations that the compiler turns into vectors: within a few units in the
// last place.
#pragma once
#include <cstdint>
#include <cstring>

#include "level.hpp"

namespace convnet::cpu {

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

}  // namespace convnet::cpu
