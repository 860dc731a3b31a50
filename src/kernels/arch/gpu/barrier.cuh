// mbarriers and named barriers. Code for sm_90 traps elsewhere: launchers choose kernels by architecture().
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define CONVNET_SM90(...) __VA_ARGS__
#else
#define CONVNET_SM90(...) __trap()
#endif

namespace convnet {

// In shared memory. Its phases are numbered from 0; it is in the first one that is not complete.
struct alignas(8) Barrier {
  uint64_t state;
};

// The number that instructions know an address of shared memory by.
__device__ __forceinline__ uint32_t shared_address(const void* address) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(address));
}

__device__ __forceinline__ void barrier_init(Barrier& barrier, int arrivals) {
  CONVNET_SM90(
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)),
                   "r"(arrivals) : "memory"));
}

__device__ __forceinline__ void fence_barrier_init() {
  CONVNET_SM90(asm volatile("fence.mbarrier_init.release.cluster;" :: : "memory"));
}

__device__ __forceinline__ void barrier_expect(Barrier& barrier, int bytes) {
  CONVNET_SM90(asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
      "r"(bytes) : "memory"));
}

__device__ __forceinline__ void barrier_arrive(Barrier& barrier) {
  CONVNET_SM90(asm volatile(
      "mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory"));
}

__device__ __forceinline__ void barrier_wait(Barrier& barrier, int parity) {
  uint32_t complete = 1;
  do {
    CONVNET_SM90(
        asm volatile("{\n"
                     ".reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n"
                     "}" : "=r"(complete) : "r"(shared_address(&barrier)),
                     "r"(parity) : "memory"));
  } while (complete == 0);
}

__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace convnet
