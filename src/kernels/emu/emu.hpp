// CUDA as kernel sources use it, on the CPU (see arch/arch.cuh). The rest of this folder is how it works: block.hpp runs
// the threads of a block, launch.hpp the blocks of a grid.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../check.hpp"
#include "block.hpp"
#include "launch.hpp"
#include "warp.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// __shared__ and __constant__ are not defined: shared_storage<T>() is the way to shared memory.

#define threadIdx (::convnet::emu::here->index)
#define blockIdx (::convnet::emu::here->block->index)
#define blockDim (::convnet::emu::here->block->extent)
#define gridDim (::convnet::emu::here->block->grid)

struct alignas(16) float4 {
  float x, y, z, w;
};

using std::max;
using std::min;

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

// All threads of the block that have not ended wait for each other here.
inline void __syncthreads(std::source_location site = std::source_location::current()) {
  convnet::emu::here->block->barrier(site);
}

// The 32 lanes of a warp wait for each other here.
inline void __syncwarp(std::source_location site = std::source_location::current()) {
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

namespace emu {

[[noreturn]] void fail_unaligned(const void* address, int bytes, Site site);

// Hardware faults on an address that is not a multiple of the access; the CPU would not.
template <int kBytes, class T>
__forceinline__ T* aligned(T* address, Site site) {
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

// The emulator is compiled without contraction of floating-point expressions.
__forceinline__ float mul_rn(float a, float b) { return a * b; }
__forceinline__ float add_rn(float a, float b) { return a + b; }
__forceinline__ float sub_rn(float a, float b) { return a - b; }

}  // namespace convnet
