// Philox4x32-10, a counter-based generator: a word depends on counter and key alone, so that random
// decisions do not change with placement, lanes or a resume. convnet/kernels/rng.py is the same generator
// on the host. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
#pragma once
#include <cstdint>

#include "../arch/arch.cuh"

namespace convnet {

struct PhiloxWords {
  uint32_t w[4];
};

// Four random words for a counter under a key, whose low half comes first.
__device__ __forceinline__ PhiloxWords philox(PhiloxWords counter, uint64_t key) {
  uint32_t low_key = static_cast<uint32_t>(key);
  uint32_t high_key = static_cast<uint32_t>(key >> 32);
  uint32_t* w = counter.w;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * w[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * w[2];
    const uint32_t w1 = w[1], w3 = w[3];
    w[0] = static_cast<uint32_t>(b >> 32) ^ w1 ^ low_key;
    w[1] = static_cast<uint32_t>(b);
    w[2] = static_cast<uint32_t>(a >> 32) ^ w3 ^ high_key;
    w[3] = static_cast<uint32_t>(a);
    low_key += 0x9E3779B9u;
    high_key += 0xBB67AE85u;
  }
  return counter;
}

}  // namespace convnet
