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

__device__ __forceinline__ void store_packed(float* address, float4 packed) {
  store4(address, packed);
}

__device__ __forceinline__ void store_packed(bf16* address, bf16x4 packed) {
  *reinterpret_cast<uint2*>(address) = uint2{packed.low, packed.high};
}

__device__ __forceinline__ void pack4(float4 values, float4& packed) { packed = values; }

__device__ __forceinline__ void pack4(float4 values, bf16x4& packed) {
  packed = bf16x4{pack_bf16(values.x, values.y), pack_bf16(values.z, values.w)};
}

__device__ __forceinline__ float4 load4(const bf16* address) {
  return unpack4(load_packed(address));
}

__device__ __forceinline__ void store4(bf16* address, float4 value) {
  bf16x4 packed;
  pack4(value, packed);
  store_packed(address, packed);
}

__device__ __forceinline__ float4 keep_where_equal(float4 packed, uint32_t bytes, uint32_t wanted) {
  const uint32_t differs = bytes ^ wanted;
  return float4{
      differs & 0xffu ? 0.0f : packed.x + 0.0f, differs & 0xff00u ? 0.0f : packed.y + 0.0f,
      differs & 0xff0000u ? 0.0f : packed.z + 0.0f, differs & 0xff000000u ? 0.0f : packed.w + 0.0f};
}

// The upper bits of the bytes become those that tell. A sum with 0 makes 0 of -0.
__device__ __forceinline__ bf16x4 keep_where_equal(bf16x4 packed, uint32_t bytes, uint32_t wanted) {
  const uint32_t differs = (bytes ^ wanted) + 0x7f7f7f7fu;
  const auto kept = [](uint32_t pair, uint32_t without) {
    uint32_t sum;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;"
        : "=r"(sum)
        : "r"(pair & ~without), "r"(0x3f803f80u), "r"(0u));
    return sum;
  };
  return bf16x4{kept(packed.low, spread_signs<0, 1>(differs)),
                kept(packed.high, spread_signs<2, 3>(differs))};
}

__device__ __forceinline__ float4 keep_where_positive(float4 packed, float4 x) {
  return float4{x.x > 0.0f ? packed.x : 0.0f, x.y > 0.0f ? packed.y : 0.0f,
                x.z > 0.0f ? packed.z : 0.0f, x.w > 0.0f ? packed.w : 0.0f};
}

__device__ __forceinline__ bf16x4 keep_where_positive(bf16x4 packed, bf16x4 x) {
  const auto kept = [](uint32_t pair, uint32_t x) {
    uint32_t positive;
#if __CUDA_ARCH__ >= 900
    asm("set.gt.u32.bf16x2 %0, %1, %2;" : "=r"(positive) : "r"(x), "r"(0u));
#else
    positive = (__uint_as_float(x << 16) > 0.0f ? 0xffffu : 0u) |
               (__uint_as_float(x & 0xffff0000u) > 0.0f ? 0xffff0000u : 0u);
#endif
    return pair & positive;
  };
  return bf16x4{kept(packed.low, x.low), kept(packed.high, x.high)};
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
