// What happens to finished sums on their way to memory.
#pragma once
#include "gemm_tile.cuh"

namespace convnet {

// max(v, 0); NaN stays NaN, as in relu.cu.
__device__ __forceinline__ float4 rectified(float4 v) {
  return float4{v.x <= 0.0f ? 0.0f : v.x, v.y <= 0.0f ? 0.0f : v.y, v.z <= 0.0f ? 0.0f : v.z,
                v.w <= 0.0f ? 0.0f : v.w};
}

// out[column][row] = sums, rows contiguous: the shape of weight gradients. 16-byte stores where
// rows is a multiple of 4.
template <class T>
__device__ __forceinline__ void store_transposed(
    const Sums<T>& sums, float* out, int first_row, int rows, int first_column, int columns) {
#pragma unroll
  for (int j = 0; j < T::kThreadN; ++j) {
    if (first_column + sums.column(j) >= columns) continue;
    float* target = out + int64_t{first_column + sums.column(j)} * rows + first_row;
#pragma unroll
    for (int i = 0; i < T::kThreadM; i += 4) {
      const int row = sums.row(i);
      const float v[4] = {sums.value[i][j], sums.value[i + 1][j], sums.value[i + 2][j],
                          sums.value[i + 3][j]};
      if (rows % 4 == 0) {
        if (first_row + row < rows) store4(target + row, float4{v[0], v[1], v[2], v[3]});
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (first_row + row + e < rows) target[row + e] = v[e];
      }
    }
  }
}

}  // namespace convnet
