// CUDA as kernel sources use it, on the CPU (see arch/arch.cuh). The rest of this folder is how it works: cluster.hpp
// runs the threads of blocks, launch.hpp the clusters of a grid.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../check.hpp"
#include "../shapes.hpp"
#include "block.hpp"
#include "glass.hpp"
#include "launch.hpp"
#include "warp.hpp"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// __shared__ and __constant__ are not defined: shared_storage<T>() is the way to shared memory.

#define threadIdx (::convnet::emu::here->index)
#define blockIdx (::convnet::emu::here->block->index)
#define blockDim (::convnet::emu::here->block->extent)
#define gridDim (::convnet::emu::here->block->grid)

struct alignas(8) float2 {
  float x, y;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

using std::max;
using std::min;

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

// All threads of the block that have not ended wait for each other here.
inline void __syncthreads(std::source_location site = std::source_location::current()) {
  if (convnet::emu::passes("__syncthreads", site)) convnet::emu::here->block->barrier(site);
}

// The 32 lanes of a warp wait for each other here.
inline void __syncwarp(std::source_location site = std::source_location::current()) {
  if (convnet::emu::passes("__syncwarp", site))
    convnet::emu::meet(0, "__syncwarp", site, [](const int*, int*) {});
}

namespace convnet {

template <class T>
__forceinline__ T& shared_storage(std::source_location site = std::source_location::current()) {
  static_assert(alignof(T) <= 1024);
  const emu::SharedMemory& shared = emu::here->block->shared;
  if (sizeof(T) > shared.size()) [[unlikely]]
    emu::fail(message("shared_storage in ", emu::describe(site), " needs ", sizeof(T),
                      " bytes, but the launch asked for ", shared.size()));
  return *reinterpret_cast<T*>(shared.data());
}

__forceinline__ void begin_kernel(std::source_location site = std::source_location::current()) {
  if (emu::noting()) [[unlikely]]
    emu::note_beginning(site);
  if (emu::watching) [[unlikely]]
    emu::watch_beginning(site);
  emu::here->begun = true;
}

namespace emu {

[[noreturn]] void fail_unaligned(const void* address, int bytes, Site site);

// Hardware faults on an address that is not a multiple of the access; the CPU would not.
template <int kBytes, class T>
__forceinline__ T* aligned(T* address, Site site) {
  if (!here->begun) [[unlikely]]
    fail_too_early(site);
  if (reinterpret_cast<uintptr_t>(address) % kBytes != 0) [[unlikely]]
    fail_unaligned(address, kBytes, site);
  return static_cast<T*>(__builtin_assume_aligned(address, kBytes));
}

}  // namespace emu

__forceinline__ float4 load4(const float* address,
                             std::source_location site = std::source_location::current()) {
  float4 value;
  std::memcpy(&value, emu::aligned<16>(address, site), 16);
  return value;
}

__forceinline__ void store4(float* address,
                            float4 value,
                            std::source_location site = std::source_location::current()) {
  std::memcpy(emu::aligned<16>(address, site), &value, 16);
}

__forceinline__ float2 load2(const float* address,
                             std::source_location site = std::source_location::current()) {
  float2 value;
  std::memcpy(&value, emu::aligned<8>(address, site), 8);
  return value;
}

__forceinline__ void store2(float* address,
                            float2 value,
                            std::source_location site = std::source_location::current()) {
  std::memcpy(emu::aligned<8>(address, site), &value, 8);
}

__forceinline__ float to_float(bf16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

__forceinline__ bf16 to_bf16(float x) {
  if (x != x) return bf16{0x7fff};
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return bf16{static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

__forceinline__ uint32_t pack_bf16(float low, float high) {
  return to_bf16(low).bits | static_cast<uint32_t>(to_bf16(high).bits) << 16;
}

__forceinline__ float round_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return std::bit_cast<float>(0x7fffe000u);
  const bool finite = (bits >> 23 & 0xff) != 0xff;
  return std::bit_cast<float>(finite ? (bits + 0x1000u) & 0xffffe000u : bits);
}

__forceinline__ float4 load4(const bf16* address,
                             std::source_location site = std::source_location::current()) {
  bf16 values[4];
  std::memcpy(values, emu::aligned<8>(address, site), 8);
  return float4{to_float(values[0]), to_float(values[1]), to_float(values[2]), to_float(values[3])};
}

__forceinline__ void store4(bf16* address,
                            float4 value,
                            std::source_location site = std::source_location::current()) {
  const bf16 values[4] = {to_bf16(value.x), to_bf16(value.y), to_bf16(value.z), to_bf16(value.w)};
  std::memcpy(emu::aligned<8>(address, site), values, 8);
}

// The first byte is lowest in the word, as on the GPU: all CPUs that this runs on are little-endian.
__forceinline__ uint32_t load4_bytes(const uint8_t* address,
                                     std::source_location site = std::source_location::current()) {
  uint32_t bytes;
  std::memcpy(&bytes, emu::aligned<4>(address, site), 4);
  return bytes;
}

__forceinline__ void store4_bytes(uint8_t* address,
                                  uint32_t bytes,
                                  std::source_location site = std::source_location::current()) {
  std::memcpy(emu::aligned<4>(address, site), &bytes, 4);
}

__forceinline__ void prefetch_l2(const void*) {}

struct bf16x4 {
  uint32_t low, high;
};

__forceinline__ float4 load_packed(const float* address,
                                   std::source_location site = std::source_location::current()) {
  return load4(address, site);
}

__forceinline__ bf16x4 load_packed(const bf16* address,
                                   std::source_location site = std::source_location::current()) {
  bf16x4 packed;
  std::memcpy(&packed, emu::aligned<8>(address, site), 8);
  return packed;
}

__forceinline__ float4 unpack4(float4 packed) { return packed; }

__forceinline__ float4 unpack4(bf16x4 packed) {
  return float4{
      std::bit_cast<float>(packed.low << 16), std::bit_cast<float>(packed.low & 0xffff0000u),
      std::bit_cast<float>(packed.high << 16), std::bit_cast<float>(packed.high & 0xffff0000u)};
}

template <int kLow, int kHigh>
__forceinline__ uint32_t spread_signs(uint32_t bytes) {
  return (bytes >> (8 * kLow + 7) & 1) * 0xffffu + (bytes >> (8 * kHigh + 7) & 1) * 0xffff0000u;
}

template <int kA, int kB, int kC, int kD>
__forceinline__ uint32_t pick_bytes(uint32_t low, uint32_t high) {
  const uint64_t both = low | uint64_t{high} << 32;
  const auto byte = [&](int i) { return static_cast<uint32_t>(both >> (8 * i) & 0xff); };
  return byte(kA) | byte(kB) << 8 | byte(kC) << 16 | byte(kD) << 24;
}

__forceinline__ uint32_t cut_to_bytes(const int (&levels)[4]) {
  uint32_t bytes = 0;
  for (int i = 0; i < 4; ++i)
    bytes |= static_cast<uint32_t>(std::clamp(levels[i], 0, 255)) << (8 * i);
  return bytes;
}

__forceinline__ void store_packed(float* address,
                                  float4 packed,
                                  std::source_location site = std::source_location::current()) {
  store4(address, packed, site);
}

__forceinline__ void store_packed(bf16* address,
                                  bf16x4 packed,
                                  std::source_location site = std::source_location::current()) {
  std::memcpy(emu::aligned<8>(address, site), &packed, 8);
}

__forceinline__ void pack4(float4 values, float4& packed) { packed = values; }

__forceinline__ void pack4(float4 values, bf16x4& packed) {
  packed = bf16x4{pack_bf16(values.x, values.y), pack_bf16(values.z, values.w)};
}

template <class Packed>
__forceinline__ Packed keep_where_equal(Packed packed, uint32_t bytes, uint32_t wanted) {
  const float4 values = unpack4(packed);
  const auto kept = [&](float value, int l) {
    return (bytes >> (8 * l) & 0xff) == (wanted >> (8 * l) & 0xff) ? value + 0.0f : 0.0f;
  };
  pack4(float4{kept(values.x, 0), kept(values.y, 1), kept(values.z, 2), kept(values.w, 3)}, packed);
  return packed;
}

template <class Packed>
__forceinline__ Packed keep_where_positive(Packed packed, Packed x) {
  const float4 values = unpack4(packed), signs = unpack4(x);
  pack4(float4{signs.x > 0.0f ? values.x : 0.0f, signs.y > 0.0f ? values.y : 0.0f,
               signs.z > 0.0f ? values.z : 0.0f, signs.w > 0.0f ? values.w : 0.0f},
        packed);
  return packed;
}

__forceinline__ float rsqrt_normal(float x) { return rsqrtf(x); }

// The emulator is compiled without contraction of floating-point expressions.
__forceinline__ float mul_rn(float a, float b) { return a * b; }
__forceinline__ float add_rn(float a, float b) { return a + b; }
__forceinline__ float sub_rn(float a, float b) { return a - b; }
__forceinline__ float fma_rn(float a, float b, float c) { return std::fma(a, b, c); }

}  // namespace convnet

#include "barrier.hpp"
#include "cluster.hpp"
#include "copy_async.hpp"
#include "mma.hpp"
#include "tma.hpp"
#include "wgmma.hpp"

namespace convnet {

__forceinline__ void store4_operand(float* place,
                                    float4 value,
                                    std::source_location site = std::source_location::current()) {
  emu::note_shared_write(place, sizeof value, site);
  store4(place, value, site);
}

}  // namespace convnet
