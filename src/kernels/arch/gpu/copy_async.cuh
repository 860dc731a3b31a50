// Asynchronous copies of sm_80.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace convnet {

// 16 bytes go past the L1 cache, which has no use for what is read once.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* target, const void* source, bool exists) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "copy_async: 4, 8 or 16 bytes");
  const uint32_t shared = static_cast<uint32_t>(__cvta_generic_to_shared(target));
  const int read = exists ? kBytes : 0;  // the rest of the target becomes zero
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(source),
                 "r"(read)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(source),
                 "n"(kBytes), "r"(read)
                 : "memory");
}

__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int kLeft>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

}  // namespace convnet
