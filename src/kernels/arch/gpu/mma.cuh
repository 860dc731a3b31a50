// Tensor cores of a warp, and the matrix loads and stores that feed them.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace convnet {

template <int M, int N>
__device__ __forceinline__ void mma_bf16(float (&sum)[M][N][4],
                                         const uint32_t (&a)[M][4],
                                         const uint32_t (&b)[N][2]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(sum[m][n][0]), "+f"(sum[m][n][1]), "+f"(sum[m][n][2]), "+f"(sum[m][n][3])
          : "r"(a[m][0]), "r"(a[m][1]), "r"(a[m][2]), "r"(a[m][3]), "r"(b[n][0]), "r"(b[n][1]));
}

template <int M, int N>
__device__ __forceinline__ void mma_tf32(float (&sum)[M][N][4],
                                         const uint32_t (&a)[M][4],
                                         const uint32_t (&b)[N][2]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
      asm volatile(
          "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(sum[m][n][0]), "+f"(sum[m][n][1]), "+f"(sum[m][n][2]), "+f"(sum[m][n][3])
          : "r"(a[m][0]), "r"(a[m][1]), "r"(a[m][2]), "r"(a[m][3]), "r"(b[n][0]), "r"(b[n][1]));
}

template <int kCount>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[kCount][4],
                                              const void* const (&rows)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[i][0]), "=r"(r[i][1]), "=r"(r[i][2]), "=r"(r[i][3])
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(rows[i])))
                 : "memory");
}

template <int kCount>
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[kCount][4],
                                                         const void* const (&rows)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[i][0]), "=r"(r[i][1]), "=r"(r[i][2]), "=r"(r[i][3])
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(rows[i])))
                 : "memory");
}

// A kernel that calls it must not be started on sm_80, but a source is compiled for both.
__device__ __forceinline__ void store_matrices_transposed(void* row, const uint32_t (&r)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(row))),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#else
  __trap();
#endif
}

}  // namespace convnet
