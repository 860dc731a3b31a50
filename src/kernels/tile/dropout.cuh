// Which elements dropout keeps: drawn wherever it is asked, in dropout.cu and where a linear layer adds
// its sums (sums.cuh), to the same bits. Every element is a draw of its own, of which one word is used:
// what is kept must not depend on which elements lie side by side.
#pragma once
#include <cmath>
#include <cstdint>

#include "../arch/arch.cuh"
#include "../check.hpp"
#include "../control.hpp"
#include "../shapes.hpp"
#include "philox.cuh"

namespace convnet {

// Of a layer, for kernels; by default none.
struct Dropout {
  const Control* control = nullptr;  // elements are dropped as it says; where it is null,
  float factor = 1.0f;               // at test, all are multiplied by this one
  uint64_t threshold = 0;            // p * 2^32
  uint64_t seed = 0;
  int64_t feature_offset = 0, features_total = 0;
  uint32_t layer = 0;

  __host__ __device__ bool acts() const { return control || factor != 1.0f; }
};

inline Dropout dropout_of(const char* op, const DropoutShape& s, const Control* control) {
  require(s.p >= 0.0f && s.p <= 1.0f, op, ": p must lie in 0..1, got p=", s.p);
  require(s.feature_offset >= 0 && s.feature_offset + s.features <= s.features_total, op,
          ": features must lie in the unsplit layer, got features=", s.features, " at offset ",
          s.feature_offset, " of ", s.features_total);
  return Dropout{
      control, 1.0f - s.p,       static_cast<uint64_t>(std::llround(double{s.p} * 4294967296.0)),
      s.seed,  s.feature_offset, s.features_total,
      s.layer};
}

// Of images n to n + 3 whether the feature is kept, four bytes, 0 or 1.
__device__ __forceinline__ uint32_t kept(const Dropout& dropout, int64_t n, int64_t feature) {
  const uint32_t step = dropout.control->step;
  const int64_t image = dropout.control->first + n;
  uint32_t bytes = 0;
  for (int j = 0; j < 4; ++j) {
    const int64_t element = (image + j) * dropout.features_total + dropout.feature_offset + feature;
    const PhiloxWords counter{{static_cast<uint32_t>(element), step, dropout.layer, 0}};
    const uint32_t one = philox(counter, dropout.seed).w[0] >= dropout.threshold;
    bytes |= one << (8 * j);
  }
  return bytes;
}

// The product with such bytes: what is dropped keeps its sign, and stays NaN where v is not finite, as
// the product does on every device.
__device__ __forceinline__ float4 keep(float4 v, uint32_t mask) {
  return float4{v.x * (mask & 0x1u ? 1.0f : 0.0f), v.y * (mask & 0x100u ? 1.0f : 0.0f),
                v.z * (mask & 0x10000u ? 1.0f : 0.0f), v.w * (mask & 0x1000000u ? 1.0f : 0.0f)};
}

}  // namespace convnet
