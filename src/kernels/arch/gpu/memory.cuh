// Shared memory and 16-byte accesses on a CUDA device.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "../../shapes.hpp"
#include "math.cuh"

namespace convnet {

template <class T>
__device__ __forceinline__ T& shared_storage() {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  return *reinterpret_cast<T*>(shared_bytes);
}

__device__ __forceinline__ float4 load4(const float* address) {
  return *reinterpret_cast<const float4*>(address);
}

__device__ __forceinline__ float2 load2(const float* address) {
  return *reinterpret_cast<const float2*>(address);
}

__device__ __forceinline__ void store2(float* address, float2 value) {
  *reinterpret_cast<float2*>(address) = value;
}

__device__ __forceinline__ void store4(float* address, float4 value) {
  *reinterpret_cast<float4*>(address) = value;
}

// Four bf16, two in each word.
struct bf16x4 {
  uint32_t low, high;
};

__device__ __forceinline__ float4 load_packed(const float* address) { return load4(address); }

__device__ __forceinline__ bf16x4 load_packed(const bf16* address) {
  const uint2 pairs = *reinterpret_cast<const uint2*>(address);
  return bf16x4{pairs.x, pairs.y};
}

__device__ __forceinline__ float4 unpack4(float4 packed) { return packed; }

__device__ __forceinline__ float4 unpack4(bf16x4 packed) {
  return float4{__uint_as_float(packed.low << 16), __uint_as_float(packed.low & 0xffff0000u),
                __uint_as_float(packed.high << 16), __uint_as_float(packed.high & 0xffff0000u)};
}

__device__ __forceinline__ float4 load4(const bf16* address) {
  return unpack4(load_packed(address));
}

__device__ __forceinline__ void store4(bf16* address, float4 value) {
  *reinterpret_cast<uint2*>(address) =
      uint2{pack_bf16(value.x, value.y), pack_bf16(value.z, value.w)};
}

__device__ __forceinline__ uint32_t load4_bytes(const uint8_t* address) {
  return *reinterpret_cast<const uint32_t*>(address);
}

__device__ __forceinline__ void store4_bytes(uint8_t* address, uint32_t value) {
  *reinterpret_cast<uint32_t*>(address) = value;
}

__device__ __forceinline__ void prefetch_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

}  // namespace convnet
