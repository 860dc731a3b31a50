// Tensor copies of sm_90.
#pragma once
#include <cuda.h>

#include <cstdint>

#include "../tensor_map.hpp"
#include "barrier.cuh"
#include "launch.cuh"

namespace convnet {

using TensorMap = CUtensorMap;

// The driver's function is looked up at run time, so that a machine without a driver can load the library.
inline TensorMap tensor_map(const char* what,
                            Element element,
                            const void* address,
                            const int64_t (&sizes)[kTensorRank],
                            const int64_t (&byte_strides)[kTensorRank - 1],
                            const int (&box)[kTensorRank],
                            Swizzle swizzle) {
  check_tensor_map(what, element, address, sizes, byte_strides, box, swizzle);
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                cudaEnableDefault, &found),
               "looking for cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess || function == nullptr)
      throw std::runtime_error(
          "the CUDA driver has no cuTensorMapEncodeTiled; it must be 12.0 or newer");
    return reinterpret_cast<Encode>(function);
  }();
  cuuint64_t extents[kTensorRank], strides[kTensorRank - 1];
  cuuint32_t box_extents[kTensorRank], steps[kTensorRank];
  for (int d = 0; d < kTensorRank; ++d) {
    extents[d] = static_cast<cuuint64_t>(sizes[d]);
    if (d > 0) strides[d - 1] = static_cast<cuuint64_t>(byte_strides[d - 1]);
    box_extents[d] = static_cast<cuuint32_t>(box[d]);
    steps[d] = 1;
  }
  constexpr CUtensorMapSwizzle kSwizzles[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B,
                                              CU_TENSOR_MAP_SWIZZLE_64B,
                                              CU_TENSOR_MAP_SWIZZLE_128B};
  TensorMap map;
  const CUresult status = encode(
      &map,
      element == Element::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
      kTensorRank, const_cast<void*>(address), extents, strides, box_extents, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, kSwizzles[static_cast<int>(swizzle)],
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    refuse(message(
        what, ": the driver refuses the tensor map (cuTensorMapEncodeTiled: CUDA driver error ",
        int(status),
        "): ", describe_tensor_map(element, address, sizes, byte_strides, box, swizzle)));
  return map;
}

__device__ __forceinline__ void tma_load(
    void* target, const TensorMap& map, Barrier& barrier, int c0, int c1, int c2, int c3, int c4) {
  CONVNET_SM90(asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared_address(target)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3),
      "r"(c4) : "memory"));
}

__device__ __forceinline__ void tma_store(
    const TensorMap& map, const void* source, int c0, int c1, int c2, int c3, int c4) {
  CONVNET_SM90(asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group "
      "[%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(&map),
      "r"(shared_address(source)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4) : "memory"));
}

__device__ __forceinline__ void bulk_commit() {
  CONVNET_SM90(asm volatile("cp.async.bulk.commit_group;" :: : "memory"));
}

template <int kLeft>
__device__ __forceinline__ void bulk_wait_read() {
  CONVNET_SM90(asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kLeft) : "memory"));
}

template <int kLeft>
__device__ __forceinline__ void bulk_wait() {
  CONVNET_SM90(asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kLeft) : "memory"));
}

__device__ __forceinline__ void prefetch(const TensorMap& map) {
  CONVNET_SM90(asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"));
}

__device__ __forceinline__ void fence_async_proxy() {
  CONVNET_SM90(asm volatile("fence.proxy.async.shared::cta;" :: : "memory"));
}

}  // namespace convnet
