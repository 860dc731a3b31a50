// A product of bf16 matrices as kernels for sm_90a are built: one warp copies, two warpgroups multiply, rings of stages between
// them. It is compiled for GPUs and for the emulator, there also with mistakes.
#pragma once
#include "arch/arch.cuh"

namespace convnet {

enum class Mistake {
  none,
  no_full_wait,        // multiplies before the operands have come
  no_empty_wait,       // copies over operands that are in use
  released_too_early,  // a stage is given back while its products are under way
  no_fence,            // the first product without wgmma_fence
  read_too_early,      // sums are used before the last wait
  missing_bytes,       // more bytes are expected than copied
  one_release,         // the second warpgroup does not give stages back
  no_store_wait,       // the kernel ends before its stores have read
  source_changed,      // the next tile's results overwrite the ones that are stored
};

constexpr int kTile = 128, kDepth = 64, kStages = 3,
              kSpan = 64;  // rows and columns, terms, ring, elements

struct PipelineShared {
  alignas(1024) bf16 a[kStages][kTile * kDepth];
  alignas(1024) bf16 b[kStages][kTile * kDepth];
  alignas(1024) bf16 c[2][64 * kTile];
  Barrier full[kStages], empty[kStages];
};

// c[M][N] = a[M][K] b[K][N], whole tiles; one block takes several tiles. The maps' boxes: a {64 terms, 128 rows}, b {64 columns,
// 64 terms}, c {128 columns, 64 rows}.
template <Mistake kMistake>
__global__ void __launch_bounds__(384, 1) pipeline_kernel(const __grid_constant__ TensorMap a,
                                                          const __grid_constant__ TensorMap b,
                                                          const __grid_constant__ TensorMap c,
                                                          int steps,
                                                          int column_tiles,
                                                          int tiles) {
  begin_kernel();
  PipelineShared& shared = shared_storage<PipelineShared>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(shared.full[i], 1);
      barrier_init(shared.empty[i], 2);
    }
    fence_barrier_init();
  }
  __syncthreads();
  const int group = threadIdx.x / 128, thread = threadIdx.x % 128;
  if (group == 2) {
    lower_registers<24>();
    if (thread < 32 && elect_one()) {
      prefetch(a);
      prefetch(b);
      int round = 0;  // of all stages together
      for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int row = tile / column_tiles * kTile, column = tile % column_tiles * kTile;
        for (int step = 0; step < steps; ++step, ++round) {
          const int stage = round % kStages;
          Barrier& full = shared.full[stage];
          if (kMistake != Mistake::no_empty_wait)
            barrier_wait(shared.empty[stage], round / kStages % 2 ^ 1);
          const int bytes = 2 * kTile * kDepth * static_cast<int>(sizeof(bf16));
          barrier_expect(full, kMistake == Mistake::missing_bytes ? bytes + 16 : bytes);
          tma_load(shared.a[stage], a, full, step * kDepth, row, 0, 0, 0);
          for (int half = 0; half < 2; ++half)
            tma_load(shared.b[stage] + half * kSpan * kDepth, b, full, column + half * kSpan,
                     step * kDepth, 0, 0, 0);
        }
      }
    }
    return;
  }
  raise_registers<240>();
  float sum[64];
  int round = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
#pragma unroll
    for (int i = 0; i < 64; ++i) sum[i] = 0.0f;
    hold(sum);
    for (int step = 0; step < steps; ++step, ++round) {
      const int stage = round % kStages;
      if (kMistake != Mistake::no_full_wait) barrier_wait(shared.full[stage], round / kStages % 2);
      const uint64_t a_operand =
          operand(shared.a[stage] + group * 64 * kDepth, 0, 1024, Swizzle::bytes128);
      const uint64_t b_operand =
          operand(shared.b[stage], kSpan * kDepth * 2, 1024, Swizzle::bytes128);
      if (kMistake != Mistake::no_fence) wgmma_fence();
#pragma unroll
      for (int k = 0; k < kDepth / 16; ++k)
        wgmma<kTile, false, true>(sum, advance(a_operand, 32 * k), advance(b_operand, 2048 * k));
      wgmma_commit();
      wgmma_wait<1>();
      // The products of the stage before are done.
      const bool early = kMistake == Mistake::released_too_early;
      const int done = early ? stage : (round + kStages - 1) % kStages;
      if ((step > 0 || early) && thread == 0 && !(kMistake == Mistake::one_release && group == 1))
        barrier_arrive(shared.empty[done]);
    }
    if (kMistake != Mistake::read_too_early) wgmma_wait<0>();
    if (kMistake != Mistake::read_too_early) hold(sum);
    if (kMistake != Mistake::released_too_early && thread == 0)
      barrier_arrive(shared.empty[(round + kStages - 1) % kStages]);
    if (kMistake != Mistake::source_changed) {
      if (thread == 0) bulk_wait_read<0>();
      named_barrier(1 + group, 128);  // the store of the tile before has read
    }
    const int row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
    uint32_t* pairs = reinterpret_cast<uint32_t*>(shared.c[group]);
#pragma unroll
    for (int i = 0; i < 64; i += 2)
      pairs[((row + i / 2 % 2 * 8) * kTile + i / 4 * 8 + column) / 2] =
          pack_bf16(sum[i], sum[i + 1]);
    if (kMistake == Mistake::read_too_early) wgmma_wait<0>();
    fence_async_proxy();
    named_barrier(1 + group, 128);
    if (thread == 0) {
      tma_store(c, shared.c[group], tile % column_tiles * kTile,
                tile / column_tiles * kTile + group * 64, 0, 0, 0);
      bulk_commit();
    }
  }
  if (kMistake != Mistake::no_store_wait && thread == 0) bulk_wait<0>();
}

template <Mistake kMistake>
void pipeline(const bf16* a, const bf16* b, const bf16* c, int M, int N, int K) {
  const auto map = [](const char* what, const bf16* x, int64_t rows, int64_t columns,
                      int box_columns, int box_rows, Swizzle swizzle) {
    const int64_t pitch = columns * 2, all = rows * pitch;
    return tensor_map(what, Element::bf16, x, {columns, rows, 1, 1, 1}, {pitch, all, all, all},
                      {box_columns, box_rows, 1, 1, 1}, swizzle);
  };
  launch(pipeline_kernel<kMistake>, Dim3(2), Dim3(384), sizeof(PipelineShared), nullptr,
         map("a", a, M, K, kDepth, kTile, Swizzle::bytes128),
         map("b", b, K, N, kSpan, kDepth, Swizzle::bytes128),
         map("c", c, M, N, kTile, 64, Swizzle::none), K / kDepth, N / kTile,
         M / kTile * (N / kTile));
}

}  // namespace convnet
