// Who copies what: the share of one thread in bringing a unit of an operand into shared memory.
//
// RowSlots    the operand lies with its tile columns (filters, or pixels and lanes) contiguous in
//             memory. A slot is 16 bytes of one reduction row; a warp copies whole lines.
// DepthSlots  the operand lies with the reduction contiguous. A slot is kDepthWidth neighbouring
//             reduction rows of one tile column, 16 bytes, and they stay neighbours in the stage:
//             tensor cores take a panel either way round, FFMA four reduction rows at a time.
// A tile has kColumns columns (its M or its N extent) and the block kThreads threads; where they do
// not divide evenly, some threads leave their last slot unused, whole warps of them except in
// narrow tiles.
#pragma once
#include <type_traits>

#include "gemm_tile.cuh"

namespace convnet {

// The first `valid` of kWidth values, zeros for the others, and for all where !exists. `whole`: the
// address is a multiple of 16 bytes, and all values exist or none; it is the same for the whole
// launch, so the branch costs no divergence. Always so in bf16, whose weights are padded.
template <int kWidth, class Element>
__device__ __forceinline__ void copy_values(
    Element* target, const Element* source, bool exists, int valid, bool whole) {
  if (sizeof(Element) == 2 || whole) {
    copy_async<16>(target, source, exists & (valid > 0));
  } else {
    if constexpr (sizeof(Element) == 4) {
#pragma unroll 1  // a loop stays out of the way of the copy above, where whole
      for (int i = 0; i < kWidth; ++i) copy_async<4>(target + i, source + i, exists & (i < valid));
    }
  }
}

template <class Arithmetic, int kColumns, int kThreads>
struct RowSlots {
  using Element = typename Arithmetic::Element;
  using Panel = RowPanel<Arithmetic, kColumns>;
  static constexpr int kWidth = 16 / sizeof(Element);
  static constexpr int kGroups = kColumns / kWidth;
  static constexpr int kRowsPerPass = kThreads / kGroups;
  static constexpr int kCount = (Arithmetic::kDepth + kRowsPerPass - 1) / kRowsPerPass;
  static_assert(kThreads % kGroups == 0, "every pass must copy whole reduction rows");

  static __device__ __forceinline__ int column() { return int(threadIdx.x) % kGroups * kWidth; }
  static __device__ __forceinline__ int row(int slot) {
    return int(threadIdx.x) / kGroups + slot * kRowsPerPass;
  }

  static __device__ __forceinline__ void copy(
      Panel& panel, int slot, const Element* source, bool exists, int valid, bool whole) {
    if ((slot + 1) * kRowsPerPass <= Arithmetic::kDepth || row(slot) < Arithmetic::kDepth)
      copy_values<kWidth>(panel.value + Panel::place(row(slot), column()), source, exists, valid,
                          whole);
  }
  static __device__ __forceinline__ void copy(Panel& panel,
                                              int slot,
                                              const Element* source,
                                              bool exists) {
    copy(panel, slot, source, exists, kWidth, true);
  }
};

template <class Arithmetic, int kColumns, int kThreads>
struct DepthSlots {
  using Element = typename Arithmetic::Element;
  static constexpr int kWidth = Arithmetic::kDepthWidth;
  using Panel = std::conditional_t<Arithmetic::kPrecision == Precision::fp32,
                                   QuarterPanel<kColumns>,
                                   DepthPanel<Arithmetic, kColumns>>;
  static constexpr int kGroups = Arithmetic::kDepth / kWidth;
  static constexpr int kColumnsPerPass = kThreads / kGroups;
  static constexpr int kCount = (kColumns + kColumnsPerPass - 1) / kColumnsPerPass;
  static_assert(kThreads % kGroups == 0, "every pass must copy whole columns");

  static __device__ __forceinline__ int row() { return int(threadIdx.x) % kGroups * kWidth; }
  // The first of the eight reduction rows that row() is one of: lanes come in eights, so that these
  // lie in one pixel. In fp32 a unit is no more, and where it lies is the same for all threads.
  static __device__ __forceinline__ int eight() { return row() / 8 * 8; }
  static __device__ __forceinline__ int column(int slot) {
    return int(threadIdx.x) / kGroups + slot * kColumnsPerPass;
  }

  static __device__ __forceinline__ void copy(
      Panel& panel, int slot, const Element* source, bool exists, int valid, bool whole) {
    if ((slot + 1) * kColumnsPerPass <= kColumns || column(slot) < kColumns)
      copy_values<kWidth>(panel.value + Panel::place(row(), column(slot)), source, exists, valid,
                          whole);
  }
  static __device__ __forceinline__ void copy(Panel& panel,
                                              int slot,
                                              const Element* source,
                                              bool exists) {
    copy(panel, slot, source, exists, kWidth, true);
  }
};

}  // namespace convnet
