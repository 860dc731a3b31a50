// Tiles of IEEE float32 multiply-adds.
//
// Work       each thread owns kThreadM x 8 sums, cut into groups of 4 rows x 4 columns that lie a
//            half tile apart: neighbouring threads read neighbouring 16 bytes of shared memory, and
//            a warp's stores form 128-byte lines.
//            Where the reduction is contiguous (QuarterPanel), these 16 bytes are four reduction
//            rows of one row or column of the tile, in place of one reduction row of four.
// Cost       per thread and reduction row 8 * kThreadM FFMA and (8 + kThreadM) / 4 16-byte shared
//            loads: 64 to 4 for 8 x 8. A warp spreads over 4 x 8 threads and reads 64 + 64 + 128 +
//            128 bytes per row, so FFMA issue is the bound, not the 128 bytes per clock of shared
//            memory.
#pragma once
#include <type_traits>

#include "gemm_tile.cuh"

namespace convnet {

template <class T>
struct SimtSums;

// Tile extents: M rows and N columns of the output, ThreadM x 8 of them per thread.
template <int M, int N, int ThreadM = 8>
struct SimtTile {
  using Arithmetic = Fp32;
  using Sums = SimtSums<SimtTile>;
  static constexpr int kM = M, kN = N, kThreadM = ThreadM, kThreadN = 8;
  static constexpr int kThreadsM = M / kThreadM, kThreadsN = N / kThreadN;
  static constexpr int kThreads = kThreadsM * kThreadsN;
  // Registers: 128 per thread for 256 threads, at most 168 for smaller blocks, which leave room for
  // 12 warps on an SM.
  static constexpr int kBlocksPerSm = kThreads == 256 ? 2 : 384 / kThreads;
  // The threads of a warp form kWarpM x kWarpN neighbours of the thread grid.
  static constexpr int kWarpN = kThreadsM % 4 != 0   ? 16
                                : kThreadsN % 8 == 0 ? 8
                                : kThreadsN % 4 == 0 ? 4
                                                     : kThreadsN;
  static constexpr int kWarpM = 32 / kWarpN;
  static_assert(M % kThreadM == 0 && N % kThreadN == 0 && kThreadM % 4 == 0,
                "a tile is whole groups of four");
  static_assert(kThreadsM % kWarpM == 0 && kThreadsN % kWarpN == 0,
                "warps must cover the thread grid");
};

// This thread's sums and the place of each in the tile. What epilogues use, here and in
// tensor_core.cuh: kRows x kQuads times four neighbouring columns, at row(i) and column(j).
template <class T>
struct SimtSums {
  static constexpr int kRows = T::kThreadM, kQuads = T::kThreadN / 4;
  float value[T::kThreadM][T::kThreadN];
  int thread_m, thread_n;

  __device__ __forceinline__ SimtSums() {
    constexpr int kWarpsN = T::kThreadsN / T::kWarpN;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
    thread_m = warp / kWarpsN * T::kWarpM + lane / T::kWarpN;
    thread_n = warp % kWarpsN * T::kWarpN + lane % T::kWarpN;
#pragma unroll
    for (int i = 0; i < T::kThreadM; ++i)
#pragma unroll
      for (int j = 0; j < T::kThreadN; ++j) value[i][j] = 0.0f;
  }

  __device__ __forceinline__ void finish() {}
  __device__ __forceinline__ int row(int i) const {
    return i / 4 * (4 * T::kThreadsM) + 4 * thread_m + i % 4;
  }
  __device__ __forceinline__ int column(int j) const {
    return j * (4 * T::kThreadsN) + 4 * thread_n;
  }
  __device__ __forceinline__ float4 quad(int i, int j) const {
    const float* v = value[i] + 4 * j;
    return float4{v[0], v[1], v[2], v[3]};
  }

  // The columns of both operands are contiguous: reduction row by reduction row.
  __device__ __forceinline__ void multiply(const RowPanel<Fp32, T::kM>& a_panel,
                                           const RowPanel<Fp32, T::kN>& b_panel) {
    const float* b_values = b_panel.value + b_panel.place(0, column(0));
#pragma unroll
    for (int k = 0; k < Fp32::kDepth; ++k) {
      float a[T::kThreadM], b[T::kThreadN];
#pragma unroll
      for (int i = 0; i < T::kThreadM; i += 4) {
        const float4 v = load4(a_panel.value + a_panel.place(k, row(i)));
        a[i] = v.x, a[i + 1] = v.y, a[i + 2] = v.z, a[i + 3] = v.w;
      }
      load_row(b, b_panel, b_values, k);
#pragma unroll
      for (int i = 0; i < T::kThreadM; ++i)
#pragma unroll
        for (int j = 0; j < T::kThreadN; ++j) value[i][j] += a[i] * b[j];
    }
  }

  // The reduction of the first is: four reduction rows at once, of which the values of the second
  // stay in registers, and those of the first pass row by row of the tile.
  template <class PanelB>
  __device__ __forceinline__ void multiply(const QuarterPanel<T::kM>& a_panel,
                                           const PanelB& b_panel) {
    // Both halves of a unit would keep too many operands in registers where both lie like that.
    [[maybe_unused]] constexpr int kUnroll = std::is_same_v<PanelB, QuarterPanel<T::kN>> ? 1 : 2;
    const float* a_values = a_panel.value + a_panel.place(0, thread_m, 0);
    const float* b_values = b_panel.value + b_panel.place(0, column(0));
#pragma unroll kUnroll
    for (int k = 0; k < Fp32::kDepth; k += 4) {
      float b[4][T::kThreadN];
      load_four(b, b_panel, b_values, k);
#pragma unroll
      for (int i = 0; i < T::kThreadM; ++i) {
        const float4 v = load4(a_values + a_panel.place(k, i / 4 * T::kThreadsM, i % 4));
        const float a[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int e = 0; e < 4; ++e)
#pragma unroll
          for (int j = 0; j < T::kThreadN; ++j) value[i][j] += a[e] * b[e][j];
      }
    }
  }

 private:
  // This thread's values of the second operand, from `first` on: in one reduction row.
  static __device__ __forceinline__ void load_row(float (&b)[T::kThreadN],
                                                  const RowPanel<Fp32, T::kN>& panel,
                                                  const float* first,
                                                  int k) {
#pragma unroll
    for (int j = 0; j < T::kThreadN; j += 4) {
      const float4 v = load4(first + panel.place(k, j * T::kThreadsN));
      b[j] = v.x, b[j + 1] = v.y, b[j + 2] = v.z, b[j + 3] = v.w;
    }
  }

  // In four of them.
  static __device__ __forceinline__ void load_four(float (&b)[4][T::kThreadN],
                                                   const RowPanel<Fp32, T::kN>& panel,
                                                   const float* first,
                                                   int k) {
#pragma unroll
    for (int e = 0; e < 4; ++e) load_row(b[e], panel, first, k + e);
  }
  static __device__ __forceinline__ void load_four(float (&b)[4][T::kThreadN],
                                                   const QuarterPanel<T::kN>& panel,
                                                   const float* first,
                                                   int k) {
#pragma unroll
    for (int j = 0; j < T::kThreadN; ++j) {
      const float4 v = load4(first + panel.place(k, j / 4 * T::kThreadsN, j % 4));
      b[0][j] = v.x, b[1][j] = v.y, b[2][j] = v.z, b[3][j] = v.w;
    }
  }
};

}  // namespace convnet
