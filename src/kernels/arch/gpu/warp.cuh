// Exchange between the 32 lanes of a warp, of float or int. Every function must be called by all 32 lanes together.
#pragma once

namespace convnet {

template <class T>
__device__ __forceinline__ T warp_shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// The value of lane 0, which the compiler then knows to be the same in all lanes: branches on it are no divergence.
__device__ __forceinline__ int warp_uniform(int value) {
  return __shfl_sync(0xffffffffu, value, 0);
}

// A butterfly: every lane adds in the same order, so that all hold the same bits.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int mask = 16; mask > 0; mask /= 2) value += warp_shuffle_xor(value, mask);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
  for (int mask = 16; mask > 0; mask /= 2) value = fmaxf(value, warp_shuffle_xor(value, mask));
  return value;
}

__device__ __forceinline__ int warp_max(int value) {
  for (int mask = 16; mask > 0; mask /= 2) value = max(value, warp_shuffle_xor(value, mask));
  return value;
}

}  // namespace convnet
