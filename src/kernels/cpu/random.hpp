// Which elements dropout keeps, and other draws: Philox4x32-10 as in tile/philox.cuh and convnet/kernels/rng.py, the word that
// dropout.hpp names; its last counter word says what a draw is for.
#pragma once
#include <cmath>
#include <cstdint>

#include "../control.hpp"
#include "../shapes.hpp"
#include "level.hpp"

namespace convnet::cpu {

CONVNET_INLINE inline uint32_t first_word(
    uint32_t element, uint32_t step, uint32_t layer, uint64_t key, uint32_t purpose = 0) {
  uint32_t w0 = element, w1 = step, w2 = layer, w3 = purpose;
  uint32_t low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * w0, b = uint64_t{0xCD9E8D57u} * w2;
    w0 = static_cast<uint32_t>(b >> 32) ^ w1 ^ low;
    w1 = static_cast<uint32_t>(b);
    w2 = static_cast<uint32_t>(a >> 32) ^ w3 ^ high;
    w3 = static_cast<uint32_t>(a);
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  return w0;
}

// p * 2^32, rounded.
inline uint64_t threshold(const DropoutShape& shape) {
  return static_cast<uint64_t>(std::floor(static_cast<double>(shape.p) * 4294967296.0 + 0.5));
}

CONVNET_INLINE inline bool keeps(const DropoutShape& shape,
                                 uint64_t threshold,
                                 const Control& control,
                                 int64_t image,
                                 int64_t feature) {
  const int64_t element =
      (control.first + image) * shape.features_total + shape.feature_offset + feature;
  return first_word(static_cast<uint32_t>(element), control.step, shape.layer, shape.seed) >=
         threshold;
}

}  // namespace convnet::cpu
