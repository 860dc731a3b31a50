// Blocks of a cluster (sm_90), which reach each other's shared memory.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "memory.cuh"
#include "tma.cuh"

namespace convnet {

__device__ __forceinline__ int cluster_rank() {
  uint32_t rank = 0;
  CONVNET_SM90(asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)));
  return static_cast<int>(rank);
}

// Arriving releases and waiting acquires what was done before by the default of both instructions.
__device__ __forceinline__ void cluster_sync() {
  __syncwarp();  // the lanes of a warp must come together
  CONVNET_SM90(asm volatile(
      "barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" :: : "memory"));
}

// The addresses are this block's own; the hardware uses their offsets in every block of the mask.
__device__ __forceinline__ void tma_load_multicast(void* target,
                                                   const TensorMap& map,
                                                   Barrier& barrier,
                                                   uint16_t blocks,
                                                   int c0,
                                                   int c1,
                                                   int c2,
                                                   int c3,
                                                   int c4) {
  CONVNET_SM90(
      asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::"
                   "bytes.multicast::cluster "
                   "[%0], [%1, {%4, %5, %6, %7, %8}], [%2], %3;" ::"r"(shared_address(target)),
                   "l"(&map), "r"(shared_address(&barrier)), "h"(blocks), "r"(c0), "r"(c1), "r"(c2),
                   "r"(c3), "r"(c4) : "memory"));
}

// For stages that tensor copies fill: it says that this block's threads have read them. An own address means this block
// everywhere, only mapa makes one of another block of it. To publish what threads wrote, an arrival would have to release at
// the scope of the cluster and the wait to acquire there, which the compiler makes of fences for the whole GPU.
__device__ __forceinline__ void barrier_arrive_at(Barrier& barrier, int rank) {
  CONVNET_SM90(
      asm volatile("{\n"
                   ".reg .b32 remote;\n"
                   "mapa.shared::cluster.u32 remote, %0, %1;\n"
                   "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
                   "}" ::"r"(shared_address(&barrier)),
                   "r"(rank) : "memory"));
}

__device__ __forceinline__ float4 load4_cluster(const float* address, int rank) {
  float4 value{};
  CONVNET_SM90(
      asm volatile("{\n"
                   ".reg .b32 remote;\n"
                   "mapa.shared::cluster.u32 remote, %4, %5;\n"
                   "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n"
                   "}" : "=f"(value.x),
                   "=f"(value.y), "=f"(value.z), "=f"(value.w) : "r"(shared_address(address)),
                   "r"(rank) : "memory"));
  return value;
}

}  // namespace convnet
