// Filter-gradient products on Hopper for few filters over few channels: all taps in one tile.
//
// What       that of tile/wgmma_filter.cuh, with operands the other way round.
// GEMM       GEMM-M = kTapRows x kTaps taps x kChannels channels, the window of a pixel; GEMM-N =
//            kFilters filters. Rows of 64 are dealt to the two consumer warpgroups, so that a window of
//            432 rows fills seven of them, and 96 filters no more than 96 columns; dy is read once for
//            all taps.
// Stage      x   [(pixels - 1) * stride + kTaps pixels][kTapRows][kChannels][32 lanes]
//            dy  [pixels][kFilters][32 lanes]
//            The order of x makes all taps of a pixel one window of neighbouring rows, behind which the
//            last 64 rows reach into the pixels behind it, or dy: sums that nobody stores.
// Epilogue   float32 sums straight to memory, in sectors of 32 bytes (eight neighbouring filters).
#pragma once
#include "wgmma_filter.cuh"

namespace convnet {

template <int kTapRowsPerTile, int kTapsPerTile, int kChannelsPerTile, int kFiltersPerTile>
struct WindowTile {
  static constexpr Precision kPrecision = Precision::bf16;
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroup;
  static constexpr int kFilters = kFiltersPerTile;
  static constexpr int kTapRows = kTapRowsPerTile, kTaps = kTapsPerTile;
  static constexpr int kChannels = kChannelsPerTile;
  static constexpr int kWindow = kTapRows * kTaps * kChannels;  // rows
  static constexpr int kBlocks = (kWindow + 63) / 64;           // of 64 rows
  static constexpr int kEach = (kBlocks + 1) / 2;               // of a warpgroup, at most
  static constexpr int kMostPixels = 3;                         // of a chunk
  static constexpr int kLanes = 32, kHalves = 2;
  static constexpr int kRow = kLanes * 2;
  static constexpr int kDyBytes = kFilters * kRow, kXBytes = kTapRows * kChannels * kRow;
  static_assert(kXBytes % kAtom == 0 && kDyBytes % kAtom == 0 && kFilters % 8 == 0);
  static_assert((kBlocks * 64 - kWindow) * kRow <= kDyBytes);

  using Sums = float[kEach][kFilters / 2];

  static TensorMap x_map(const Activation& a, int64_t x_pixels) {
    return tensor_map("x", Element::bf16, a.data, {64, a.maps, a.rows, a.columns, a.blocks},
                      {a.map_stride, a.row_stride, a.column_stride, a.block_stride},
                      {kLanes, kChannels, kTapRows, int(x_pixels), 1}, Swizzle::bytes64);
  }
  static __device__ __forceinline__ void load_x(void* target,
                                                const TensorMap& x,
                                                Barrier& full,
                                                int lane,
                                                int channel,
                                                int column,
                                                int row,
                                                int block) {
    tma_load(target, x, full, lane, channel, row, column, block);
  }

  static __device__ __forceinline__ bool works(const FilterProblem&,
                                               const FilterPart<WindowTile>&,
                                               int) {
    return true;
  }

  static __device__ __forceinline__ void clear(Sums& sum) {
#pragma unroll
    for (int b = 0; b < kEach; ++b) clear_sums(sum[b]);
  }
  static __device__ __forceinline__ void hold(Sums& sum) {
#pragma unroll
    for (int b = 0; b < kEach; ++b) convnet::hold(sum[b]);
  }

  // The products of kPixels pixels with blocks `first`, `first` + 2, ..., without a branch between them.
  template <int kPixels, int first>
  static __device__ __forceinline__ void multiply_blocks(Sums& sum,
                                                         uint64_t dy,
                                                         uint64_t x,
                                                         int x_step) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kPixels; ++i)
#pragma unroll
      for (int n = 0; n < kLanes; n += kTerms)
#pragma unroll
        for (int b = first; b < kBlocks; b += 2)
          wgmma<kFilters, false, false>(sum[b / 2], advance(x, i * x_step + b * 64 * kRow + n * 2),
                                        advance(dy, i * kDyBytes + n * 2));
    wgmma_commit();
  }

  template <int kPixels>
  static __device__ __forceinline__ void multiply(
      Sums& sum, const unsigned char* dy, const unsigned char* x, int x_step, int warpgroup) {
    const uint64_t a = operand(x, kAtom, 8 * kRow, Swizzle::bytes64);
    const uint64_t b = operand(dy, kAtom, 8 * kRow, Swizzle::bytes64);
    if (warpgroup == 0)
      multiply_blocks<kPixels, 0>(sum, b, a, x_step);
    else
      multiply_blocks<kPixels, 1>(sum, b, a, x_step);
  }

  static __device__ __forceinline__ void store(const FilterProblem& p,
                                               const FilterPart<WindowTile>& part,
                                               const Sums& sum,
                                               int warpgroup,
                                               float* dweight) {
    const int thread = threadIdx.x % kWarpgroup, lane = thread % 32;
    const int filter = part.filter + lane % 4 * 2;
#pragma unroll
    for (int b = 0; b < kEach; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = (2 * b + warpgroup) * 64 + thread / 32 * 16 + half * 8 + lane / 4;
        const int s = part.s + row / (kTapRows * kChannels),
                  r = part.r + row / kChannels % kTapRows;
        const int c = part.channel + row % kChannels;
        if (row >= kWindow || s >= p.S || r >= p.R || c >= p.C) continue;
        float* target =
            dweight + (((int64_t{part.group} * p.C + c) * p.R + r) * p.S + s) * p.K + filter;
#pragma unroll
        for (int i = 0; i < kFilters / 4; ++i) {
          const int k = i / 2 * 8 + i % 2;
          if (filter + k < p.K) target[k] = sum[b][i / 2 * 4 + half * 2 + i % 2];
        }
      }
  }
};

}  // namespace convnet
