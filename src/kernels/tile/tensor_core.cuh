// Tiles of tensor-core products by warps (mma.sync): bf16, and float32 rounded to tf32.
//
// Work       a warp owns kWarpM x kWarpN sums as 16 x 8 fragments. With g = lane / 4, q = lane % 4,
//            a lane holds of each the rows g and g + 8 of columns 2 q and 2 q + 1; at the end
//            neighbours exchange halves, so that each has four neighbouring columns of one row.
// Shared     bf16: rows of 8 values, gathered by load_matrices from panels of either kind; the pads
//            put eight such rows on different banks. tf32: single values, which the pads put on 32
//            banks.
// Cost       per warp of 64 x 64 sums and 16 (bf16) or 8 (tf32) reduction rows 32 instructions of
//            16 x 8 sums, and 4 KiB of shared memory: on sm_80 256 clocks of a tensor core to 128
//            of the SM's four warps in shared memory. Tensor cores are the bound.
#pragma once
#include <cstring>

#include "gemm_tile.cuh"

namespace convnet {

template <class T>
struct MmaSums;

// Tile extents, and those of a warp.
template <class Arithmetic_, int M, int N, int WarpM, int WarpN>
struct MmaTile {
  using Arithmetic = Arithmetic_;
  using Sums = MmaSums<MmaTile>;
  static constexpr int kM = M, kN = N, kWarpM = WarpM, kWarpN = WarpN;
  static constexpr int kThreads = 32 * (M / WarpM) * (N / WarpN);
  static constexpr int kBlocksPerSm = 256 / kThreads;  // up to 255 registers per thread
  static_assert(M % WarpM == 0 && N % WarpN == 0 && WarpM % 16 == 0 && WarpN % 16 == 0,
                "a tile is whole warps, a warp whole pairs of fragments");
};

namespace fragments {

// Registers of a 16 x 16 (bf16) or 16 x 8 (tf32) fragment of `a` and of two 8-column fragments of
// `b`, at reduction row k and column `first` of a panel.

template <int kCount, int kColumns>
__device__ __forceinline__ void load_a(
    uint32_t (&a)[kCount][4], const RowPanel<Bf16, kColumns>& panel, int k, int first, int lane) {
  const void* rows[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    rows[i] =
        panel.value + panel.place(k + lane % 8 + lane / 16 * 8, first + 16 * i + lane / 8 % 2 * 8);
  load_matrices_transposed(a, rows);
}

template <int kCount, int kColumns>
__device__ __forceinline__ void load_a(
    uint32_t (&a)[kCount][4], const DepthPanel<Bf16, kColumns>& panel, int k, int first, int lane) {
  const void* rows[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    rows[i] = panel.value + panel.place(k + lane / 16 * 8, first + 16 * i + lane % 16);
  load_matrices(a, rows);
}

template <int kCount, int kColumns>
__device__ __forceinline__ void load_b(
    uint32_t (&b)[kCount][4], const RowPanel<Bf16, kColumns>& panel, int k, int first, int lane) {
  const void* rows[kCount];
#pragma unroll
  for (int j = 0; j < kCount; ++j)
    rows[j] = panel.value + panel.place(k + lane % 16, first + 16 * j + lane / 16 * 8);
  load_matrices_transposed(b, rows);
}

template <int kCount, int kColumns>
__device__ __forceinline__ void load_b(
    uint32_t (&b)[kCount][4], const DepthPanel<Bf16, kColumns>& panel, int k, int first, int lane) {
  const void* rows[kCount];
#pragma unroll
  for (int j = 0; j < kCount; ++j)
    rows[j] =
        panel.value + panel.place(k + lane / 8 % 2 * 8, first + 16 * j + lane % 8 + lane / 16 * 8);
  load_matrices(b, rows);
}

__device__ __forceinline__ uint32_t tf32_bits(float x) {
  const float rounded = round_tf32(x);
  uint32_t bits;
  memcpy(&bits, &rounded, sizeof(bits));
  return bits;
}

template <int kCount, template <class, int> class Panel, int kColumns>
__device__ __forceinline__ void load_a(
    uint32_t (&a)[kCount][4], const Panel<Tf32, kColumns>& panel, int k, int first, int lane) {
#pragma unroll
  for (int i = 0; i < kCount; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      a[i][e] = tf32_bits(panel.value[panel.place(k + lane % 4 + e / 2 * 4,
                                                  first + 16 * i + lane / 4 + e % 2 * 8)]);
}

template <int kCount, template <class, int> class Panel, int kColumns>
__device__ __forceinline__ void load_b(
    uint32_t (&b)[kCount][4], const Panel<Tf32, kColumns>& panel, int k, int first, int lane) {
#pragma unroll
  for (int j = 0; j < kCount; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      b[j][e] = tf32_bits(panel.value[panel.place(k + lane % 4 + e % 2 * 4,
                                                  first + 16 * j + lane / 4 + e / 2 * 8)]);
}

}  // namespace fragments

// As SimtSums (simt.cuh).
template <class T>
struct MmaSums {
  static constexpr int kRows = T::kWarpM / 16, kQuads = T::kWarpN / 8;
  float value[kRows][kQuads][4];
  int first_row, first_column, lane;  // of the warp; within the warp

  __device__ __forceinline__ MmaSums() {
    constexpr int kWarpsN = T::kN / T::kWarpN;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    first_row = warp / kWarpsN * T::kWarpM;
    first_column = warp % kWarpsN * T::kWarpN;
    lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kQuads; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) value[i][j][e] = 0.0f;
  }

  template <class PanelA, class PanelB>
  __device__ __forceinline__ void multiply(const PanelA& a_panel, const PanelB& b_panel) {
    using Arithmetic = typename T::Arithmetic;
    constexpr bool kBf16 = Arithmetic::kPrecision == Precision::bf16;
#pragma unroll
    for (int k = 0; k < Arithmetic::kDepth; k += kBf16 ? 16 : 8) {
      uint32_t a[kRows][4], pairs[kQuads / 2][4], b[kQuads][2];
      fragments::load_a(a, a_panel, k, first_row, lane);
      fragments::load_b(pairs, b_panel, k, first_column, lane);
#pragma unroll
      for (int j = 0; j < kQuads; ++j)
        b[j][0] = pairs[j / 2][j % 2 * 2], b[j][1] = pairs[j / 2][j % 2 * 2 + 1];
      if constexpr (kBf16)
        mma_bf16(value, a, b);
      else
        mma_tf32(value, a, b);
    }
  }

  // All threads call this behind the last product and in front of the first quad().
  __device__ __forceinline__ void finish() {
    const bool odd = lane % 2 == 1;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kQuads; ++j) {
        float (&v)[4] = value[i][j];
        const float x = warp_shuffle_xor(odd ? v[0] : v[2], 1);
        const float y = warp_shuffle_xor(odd ? v[1] : v[3], 1);
        v[0] = odd ? x : v[0], v[1] = odd ? y : v[1];
        v[2] = odd ? v[2] : x, v[3] = odd ? v[3] : y;
      }
  }
  __device__ __forceinline__ int row(int i) const {
    return first_row + 16 * i + lane / 4 + lane % 2 * 8;
  }
  __device__ __forceinline__ int column(int j) const {
    return first_column + 8 * j + lane % 4 / 2 * 4;
  }
  __device__ __forceinline__ float4 quad(int i, int j) const {
    const float* v = value[i][j];
    return float4{v[0], v[1], v[2], v[3]};
  }
};

}  // namespace convnet
