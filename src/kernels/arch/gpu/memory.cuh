// Shared memory and 16-byte accesses on a CUDA device.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace convnet {

template <class T>
__device__ __forceinline__ T& shared_storage() {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  return *reinterpret_cast<T*>(shared_bytes);
}

__device__ __forceinline__ float4 load4(const float* address) {
  return *reinterpret_cast<const float4*>(address);
}

__device__ __forceinline__ void store4(float* address, float4 value) {
  *reinterpret_cast<float4*>(address) = value;
}

__device__ __forceinline__ uint32_t load4_bytes(const uint8_t* address) {
  return *reinterpret_cast<const uint32_t*>(address);
}

__device__ __forceinline__ void store4_bytes(uint8_t* address, uint32_t value) {
  *reinterpret_cast<uint32_t*>(address) = value;
}

}  // namespace convnet
