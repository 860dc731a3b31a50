// The bfloat16 copy of a weight: its rows, each padded with zeros to a multiple of 8 values, so
// that tensor copies and 16-byte accesses find every row aligned.
#pragma once
#include <cstdint>

#include "../arch/arch.cuh"
#include "../check.hpp"

namespace convnet {

struct CopyRows {
  int64_t columns;  // of the weight
  int64_t padded;   // of the copy

  // Where element i of the weight lies in the copy.
  __device__ __forceinline__ int64_t place(int64_t i) const {
    const int64_t row = i / columns;
    return i + row * (padded - columns);
  }
};

// The rows of a weight of `count` values; throws where these are not whole rows.
inline CopyRows copy_rows(const char* op, int64_t count, int64_t columns) {
  // half of 64 bits: rounding up cannot overflow
  require(columns >= 1 && columns < int64_t{1} << 62 && count >= 0 && count % columns == 0, op,
          ": a weight must be whole rows, got ", count, " values in rows of ", columns);
  return CopyRows{columns, (columns + 7) / 8 * 8};
}

// Values k to k + 3 of a row of the copy (k a multiple of 4), `row` being that of the weight.
__device__ __forceinline__ float4 load_row4(const float* row, const CopyRows& rows, int64_t k) {
  if (rows.columns % 4 == 0)  // then every row is aligned, and no quad is cut short
    return k < rows.columns ? load4(row + k) : float4{0.0f, 0.0f, 0.0f, 0.0f};
  float value[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) value[j] = k + j < rows.columns ? row[k + j] : 0.0f;
  return float4{value[0], value[1], value[2], value[3]};
}

}  // namespace convnet
