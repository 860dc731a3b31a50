// Who fetches what: the share of one thread in bringing kStep reduction rows of an operand into
// shared memory.
//
// RowSlots    the operand lies with its tile columns (filters, or pixels and lanes) contiguous in
//             memory. A slot is four neighbouring columns of one reduction row: 16 bytes read, 16
//             bytes stored, a warp reads whole lines.
// DepthSlots  the operand lies with the reduction contiguous. A slot is four neighbouring reduction
//             rows of one tile column, transposed on the way into shared memory. Lanes 2i and 2i +
//             1 read one 32-byte sector; their stores go to columns i of rows k and k + 4, which
//             lie 16 banks apart: no conflict.
// A tile has kColumns columns (its M or its N extent) and the block kThreads threads; where they do
// not divide evenly, some threads leave their last slot unused, whole warps of them except in
// narrow tiles.
#pragma once
#include "gemm_tile.cuh"

namespace convnet {

__device__ __forceinline__ float4 zero4() { return float4{0.0f, 0.0f, 0.0f, 0.0f}; }

// The first `valid` of four floats, zero for the others (none when valid <= 0). `aligned`: address
// and valid are known to be multiples of four floats; it is the same for the whole launch, so the
// branch costs no divergence.
__device__ __forceinline__ float4 load_up_to_4(const float* address, int valid, bool aligned) {
  if (aligned) return valid > 0 ? load4(address) : zero4();
  float4 v = zero4();
  if (valid > 0) v.x = address[0];
  if (valid > 1) v.y = address[1];
  if (valid > 2) v.z = address[2];
  if (valid > 3) v.w = address[3];
  return v;
}

template <int kColumns, int kThreads>
struct RowSlots {
  static constexpr int kGroups = kColumns / 4;
  static constexpr int kRowsPerPass = kThreads / kGroups;
  static constexpr int kCount = (kStep + kRowsPerPass - 1) / kRowsPerPass;
  static_assert(kThreads % kGroups == 0, "every pass must fetch whole reduction rows");

  float4 value[kCount];
  int place = row(0) * (kColumns + 4) + column();  // of slot 0 in the stage

  static __device__ __forceinline__ int column() { return int(threadIdx.x) % kGroups * 4; }
  static __device__ __forceinline__ int row(int slot) {
    return int(threadIdx.x) / kGroups + slot * kRowsPerPass;
  }
  static __device__ __forceinline__ bool used(int slot) {
    return kStep % kRowsPerPass == 0 || row(slot) < kStep;
  }

  __device__ __forceinline__ void store(float (&tile)[kStep * (kColumns + 4)]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (used(i)) store4(tile + place + i * kRowsPerPass * (kColumns + 4), value[i]);
  }
};

template <int kColumns, int kThreads>
struct DepthSlots {
  static constexpr int kQuads = kStep / 4;
  static constexpr int kColumnsPerPass = kThreads / kQuads;
  static constexpr int kCount = (kColumns + kColumnsPerPass - 1) / kColumnsPerPass;

  float4 value[kCount];
  int place = row() * (kColumns + 4) + column(0);  // of slot 0 in the stage

  static __device__ __forceinline__ int row() { return int(threadIdx.x) % kQuads * 4; }
  static __device__ __forceinline__ int column(int slot) {
    return int(threadIdx.x) / kQuads + slot * kColumnsPerPass;
  }
  static __device__ __forceinline__ bool used(int slot) {
    return kColumns % kColumnsPerPass == 0 || column(slot) < kColumns;
  }

  __device__ __forceinline__ void store(float (&tile)[kStep * (kColumns + 4)]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (!used(i)) continue;
      float* column = tile + place + i * kColumnsPerPass;
      column[0] = value[i].x;
      column[kColumns + 4] = value[i].y;
      column[2 * (kColumns + 4)] = value[i].z;
      column[3 * (kColumns + 4)] = value[i].w;
    }
  }
};

}  // namespace convnet
