// The tile loop shared by convolutions and linear layers: one block computes kM x kN sums over a
// reduction of any length.
//
// What       sum[m][n] += a[k][m] * b[k][n], k ascending. The order of each sum is the order in
//            which the operands deliver k, whatever the tile size: a kernel that fixes that order
//            gives the same bits in every variant.
// Work       each thread owns kThreadM x 8 sums, cut into groups of 4 rows x 4 columns that lie a
//            half tile apart: neighbouring threads read neighbouring 16 bytes of shared memory, and
//            a warp's stores form 128-byte lines.
// Shared     two stages of kStep reduction rows: [kStep][kM + 4] of a, [kStep][kN + 4] of b. The 4
//            extra columns shift row k + 4 by 16 banks, so that transposing stores (DepthSlots,
//            loaders.cuh) meet no bank conflict.
// Barriers   one per step: behind it the next stage is complete and nobody reads the stage that is
//            overwritten next.
// Cost       per thread and reduction row 8 * kThreadM FFMA and (8 + kThreadM) / 4 16-byte shared
//            loads: 64 to 4 for 8 x 8. A warp spreads over 4 x 8 threads and reads 64 + 64 + 128 +
//            128 bytes per row, so FFMA issue is the bound, not the 128 bytes per clock of shared
//            memory. Operands of step k + 1 travel from global memory to registers while step k is
//            multiplied: 8 warps hide 512 FFMA issue slots each behind one load.
#pragma once
#include "../arch/arch.cuh"

namespace convnet {

// Reduction rows per stage. Lanes come in eights: where they are the reduction, a stage never
// crosses a pixel.
constexpr int kStep = 8;

// Tile extents: M rows and N columns of the output, ThreadM x 8 of them per thread.
template <int M, int N, int ThreadM = 8>
struct Tile {
  static constexpr int kM = M, kN = N, kThreadM = ThreadM, kThreadN = 8;
  static constexpr int kThreadsM = M / kThreadM, kThreadsN = N / kThreadN;
  static constexpr int kThreads = kThreadsM * kThreadsN;
  // Registers: 128 per thread for 256 threads, at most 168 for smaller blocks, and never fewer than
  // 12 warps on an SM.
  static constexpr int kBlocksPerSm = kThreads == 256 ? 2 : 384 / kThreads;
  // The threads of a warp form kWarpM x kWarpN neighbours of the thread grid.
  static constexpr int kWarpN = kThreadsM % 4 != 0 ? 16 : kThreadsN < 8 ? kThreadsN : 8;
  static constexpr int kWarpM = 32 / kWarpN;
  static_assert(M % kThreadM == 0 && N % kThreadN == 0 && kThreadM % 4 == 0,
                "a tile is whole groups of four");
  static_assert(kThreadsM % kWarpM == 0 && kThreadsN % kWarpN == 0,
                "warps must cover the thread grid");
};

template <class T>
struct Stage {
  float a[kStep * (T::kM + 4)];
  float b[kStep * (T::kN + 4)];
};

template <class T>
struct Stages {
  Stage<T> stage[2];
};

// This thread's sums and the place of each in the tile.
template <class T>
struct Sums {
  float value[T::kThreadM][T::kThreadN];
  int thread_m, thread_n;

  __device__ __forceinline__ Sums() {
    constexpr int kWarpsN = T::kThreadsN / T::kWarpN;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
    thread_m = warp / kWarpsN * T::kWarpM + lane / T::kWarpN;
    thread_n = warp % kWarpsN * T::kWarpN + lane % T::kWarpN;
#pragma unroll
    for (int i = 0; i < T::kThreadM; ++i)
#pragma unroll
      for (int j = 0; j < T::kThreadN; ++j) value[i][j] = 0.0f;
  }

  // Tile row of value[i][...] and tile column of value[...][j]; four neighbours from a multiple of
  // four on lie side by side.
  __device__ __forceinline__ int row(int i) const {
    return i / 4 * (4 * T::kThreadsM) + 4 * thread_m + i % 4;
  }
  __device__ __forceinline__ int column(int j) const {
    return j / 4 * (4 * T::kThreadsN) + 4 * thread_n + j % 4;
  }

  __device__ __forceinline__ void multiply(const Stage<T>& stage) {
#pragma unroll
    for (int k = 0; k < kStep; ++k) {
      float a[T::kThreadM], b[T::kThreadN];
#pragma unroll
      for (int i = 0; i < T::kThreadM; i += 4) {
        const float4 v = load4(stage.a + k * (T::kM + 4) + row(i));
        a[i] = v.x, a[i + 1] = v.y, a[i + 2] = v.z, a[i + 3] = v.w;
      }
#pragma unroll
      for (int j = 0; j < T::kThreadN; j += 4) {
        const float4 v = load4(stage.b + k * (T::kN + 4) + column(j));
        b[j] = v.x, b[j + 1] = v.y, b[j + 2] = v.z, b[j + 3] = v.w;
      }
#pragma unroll
      for (int i = 0; i < T::kThreadM; ++i)
#pragma unroll
        for (int j = 0; j < T::kThreadN; ++j) value[i][j] += a[i] * b[j];
    }
  }
};

// The loop. Operands has fetch(), which brings the next kStep reduction rows from global memory
// into registers, and store(stage), which puts them into shared memory. Every thread of the block
// must call this with the same `steps`.
template <class T, class Operands>
__device__ __forceinline__ void multiply(Sums<T>& sums,
                                         Stages<T>& shared,
                                         Operands& operands,
                                         int steps) {
  if (steps == 0) return;
  operands.fetch();
  operands.store(shared.stage[steps & 1]);
  __syncthreads();  // the first stage is complete
  for (int left = steps; left > 0; --left) {
    if (left > 1) operands.fetch();
    sums.multiply(shared.stage[left & 1]);
    if (left > 1) operands.store(shared.stage[(left - 1) & 1]);
    __syncthreads();  // the next stage is complete, and this one, read by all, may be overwritten
  }
}

}  // namespace convnet
