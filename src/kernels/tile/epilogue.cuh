// What happens to finished sums on their way to memory.
#pragma once
#include "gemm_tile.cuh"

namespace convnet {

// max(v, 0); NaN stays NaN, as in relu.cu.
__device__ __forceinline__ float4 rectified(float4 v) {
  return float4{v.x <= 0.0f ? 0.0f : v.x, v.y <= 0.0f ? 0.0f : v.y, v.z <= 0.0f ? 0.0f : v.z,
                v.w <= 0.0f ? 0.0f : v.w};
}

// v where x > 0, else 0: how a gradient passes a ReLU whose output is x. 0 where x is NaN, as in
// relu.cu.
__device__ __forceinline__ float4 where_positive(float4 v, float4 x) {
  return float4{x.x > 0.0f ? v.x : 0.0f, x.y > 0.0f ? v.y : 0.0f, x.z > 0.0f ? v.z : 0.0f,
                x.w > 0.0f ? v.w : 0.0f};
}

// The same for a pair of bfloat16 (pack_bf16).
__device__ __forceinline__ uint32_t where_positive(uint32_t pair, uint32_t x) {
  const bool low = to_float(bf16{static_cast<uint16_t>(x)}) > 0.0f;
  const bool high = to_float(bf16{static_cast<uint16_t>(x >> 16)}) > 0.0f;
  return (low ? pair & 0xffffu : 0u) | (high ? pair & 0xffff0000u : 0u);
}

__device__ __forceinline__ float4 add(float4 v, float b) {
  return float4{v.x + b, v.y + b, v.z + b, v.w + b};
}

__device__ __forceinline__ float4 add(float4 u, float4 v) {
  return float4{u.x + v.x, u.y + v.y, u.z + v.z, u.w + v.w};
}

// A GEMM column n of an activation whose blocks have `size` columns each.
struct Place {
  int64_t block;
  int rest;

  // To the column `by` further on.
  __device__ __forceinline__ void advance(int by, int size) {
    rest += by;
    while (rest >= size) rest -= size, ++block;
  }
};

__device__ __forceinline__ Place place_of(int64_t column, int size) {
  const int64_t block = column / size;
  return Place{block, static_cast<int>(column - block * size)};
}

// out[row][column] = sums, columns contiguous: the shape of weight gradients. 16-byte stores where
// the number of columns is a multiple of 4.
template <class Sums>
__device__ __forceinline__ void store_matrix(
    const Sums& sums, float* out, int first_row, int rows, int first_column, int columns) {
#pragma unroll
  for (int i = 0; i < Sums::kRows; ++i) {
    const int row = first_row + sums.row(i);
    if (row >= rows) continue;
#pragma unroll
    for (int j = 0; j < Sums::kQuads; ++j) {
      const int column = first_column + sums.column(j);
      float* target = out + int64_t{row} * columns + column;
      const float4 v = sums.quad(i, j);
      if (columns % 4 == 0) {
        if (column < columns) store4(target, v);
      } else {
        if (column < columns) target[0] = v.x;
        if (column + 1 < columns) target[1] = v.y;
        if (column + 2 < columns) target[2] = v.z;
        if (column + 3 < columns) target[3] = v.w;
      }
    }
  }
}

}  // namespace convnet
