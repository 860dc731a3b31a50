// The tile loop shared by convolutions and linear layers: one block computes kM x kN sums over a
// reduction of any length, in one of three arithmetics.
//
// What       sum[m][n] += a[k][m] * b[k][n], k ascending. The order of each sum is the order in
//            which the operands deliver k, whatever the tile size: a kernel that fixes that order
//            gives the same bits in every tile of an arithmetic.
// Work       Operands copies, Sums multiplies. The reduction goes in units of kDepth rows, each of
//            one filter tap at most; a stage of shared memory holds kUnits of them.
// Shared     a ring of kStages stages. While one is multiplied the others are on their way, copied
//            from global memory without passing registers (copy_async).
// Barriers   one per stage: behind it everybody's copies into the stage are visible, and nobody
//            reads any more from the stage before, which is copied into next.
// Cost       see simt.cuh and tensor_core.cuh.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../arch/arch.cuh"

namespace convnet {

// How products are computed: the type of both operands, and the shape of the ring. kDepthWidth is
// how many neighbours of a reduction that is contiguous in memory one copy brings; kRowPad and
// kDepthPad keep the readers of a panel off each other's banks.

// FFMA. Two units between barriers, so that what a stage costs beside multiplying weighs less.
struct Fp32 {
  static constexpr Precision kPrecision = Precision::fp32;
  using Element = float;
  static constexpr int kDepth = 8, kUnits = 2, kStages = 3, kDepthWidth = 4;
  static constexpr int kRowPad = 4, kDepthPad = 4;
};

// Tensor cores; float32 in memory, rounded on the way from shared memory to registers.
struct Tf32 {
  static constexpr Precision kPrecision = Precision::tf32;
  using Element = float;
  static constexpr int kDepth = 16, kUnits = 1, kStages = 3, kDepthWidth = 4;
  static constexpr int kRowPad = 8, kDepthPad = 4;
};

// Tensor cores. A unit is one instruction deep; two of them between barriers, so that a tap's
// channels need only be a multiple of 16.
struct Bf16 {
  static constexpr Precision kPrecision = Precision::bf16;
  using Element = bf16;
  static constexpr int kDepth = 16, kUnits = 2, kStages = 3, kDepthWidth = 8;
  static constexpr int kRowPad = 8, kDepthPad = 8;
};

// An operand's share of a unit in shared memory, with its columns contiguous: [k][column].
template <class Arithmetic_, int kColumns>
struct RowPanel {
  using Arithmetic = Arithmetic_;
  static constexpr int kPitch = kColumns + Arithmetic::kRowPad;
  alignas(16) typename Arithmetic::Element value[Arithmetic::kDepth * kPitch];
  static __device__ __forceinline__ int place(int k, int column) { return k * kPitch + column; }
};

// The same with the reduction contiguous: [column][k].
template <class Arithmetic_, int kColumns>
struct DepthPanel {
  using Arithmetic = Arithmetic_;
  static constexpr int kPitch = Arithmetic::kDepth + Arithmetic::kDepthPad;
  alignas(16) typename Arithmetic::Element value[kColumns * kPitch];
  static __device__ __forceinline__ int place(int k, int column) { return column * kPitch + k; }
};

// The same for FFMA, whose threads own four neighbouring columns each, and read four values of k of
// one: [column % 4][column / 4][k]. Eight threads then read columns that lie a pitch apart; it and
// the pad keep them, and eight that copy four columns, off each other's banks.
template <int kColumns>
struct QuarterPanel {
  using Arithmetic = Fp32;
  static constexpr int kPitch = Fp32::kDepth + Fp32::kDepthPad;
  static constexpr int kQuarter = kColumns / 4 * kPitch + 8;
  alignas(16) float value[4 * kQuarter];
  // Of column 4 * four + which.
  static __device__ __forceinline__ int place(int k, int four, int which) {
    return which * kQuarter + four * kPitch + k;
  }
  static __device__ __forceinline__ int place(int k, int column) {
    return place(k, column / 4, column % 4);
  }
};

// Both operands of a unit.
template <class Operands>
struct Unit {
  typename Operands::A::Panel a;
  typename Operands::B::Panel b;
};

template <class Operands>
struct Ring {
  using Arithmetic = typename Operands::A::Panel::Arithmetic;
  Unit<Operands> stage[Arithmetic::kStages][Arithmetic::kUnits];
};

// The loop. Operands has copy(unit, exists), which starts the copies of this thread's share of the
// next unit: zeros where `exists` is false, behind the end of the reduction. Sums has
// multiply(unit.a, unit.b). Every thread of the block must call this with the same `units`.
template <class Sums, class Operands>
__device__ __forceinline__ void multiply(Sums& sums,
                                         Ring<Operands>& ring,
                                         Operands& operands,
                                         int units) {
  using Arithmetic = typename Ring<Operands>::Arithmetic;
  constexpr int kStages = Arithmetic::kStages, kUnits = Arithmetic::kUnits;
  const auto copy = [&](int stage, int unit) {
    if (unit < units) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) operands.copy(ring.stage[stage][u], unit + u < units);
    }
    copy_async_commit();
  };
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) copy(stage, stage * kUnits);
  int read = 0, write = kStages - 1;
#pragma unroll 1
  for (int unit = 0; unit < units; unit += kUnits) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // this stage is complete; the one written next has been read by all
    copy(write, unit + (kStages - 1) * kUnits);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) sums.multiply(ring.stage[read][u].a, ring.stage[read][u].b);
    write = read;
    read = read + 1 < kStages ? read + 1 : 0;
  }
}

}  // namespace convnet
