// What tf32 products on Hopper share: stages whose operands are rounded where they lie, fragments in
// registers, float32 tensors as tensor maps.
//
// What       wgmma cuts tf32 operands instead of rounding them, and wants both with the reduction
//            contiguous. So the first one goes through registers, where a thread rounds it, from
//            whatever order it has in shared memory; and the second one is rounded (and transposed)
//            in its stage by three *preparing* warps: those of the producer's warpgroup that copy
//            nothing. A stage has a third mbarrier, `ready`, which completes when they are done.
// Order      preparing warp: await() - read, round, write - announce() - next(). Consumer:
//            await_ready() - load, wgmma, commit - next(), and release() as with any ring.
// Slots      of eight terms, slot i < 4 of a product is term 2 i and slot 4 + i is term 2 i + 1, in both
//            operands: a thread's registers of the first one, slots lane % 4 and 4 + lane % 4, are then
//            neighbours, and warps read without bank conflicts.
#pragma once
#include <cstring>

#include "wgmma_ring.cuh"
#include "wgmma_tensors.cuh"

namespace convnet {

constexpr int kPreparingWarps = 3;
constexpr int kTermsTf32 = 8;      // of the reduction, per wgmma
constexpr int kSpanTf32 = 64 * 4;  // bytes of the 64 image lanes of an activation

struct PreparedBarriers {
  RingBarriers ring;
  Barrier ready[kMostStages];
};
static_assert(sizeof(PreparedBarriers) <= kStagesOffset);

class PreparedRing : public StageRing {
 public:
  __device__ __forceinline__ PreparedRing(PreparedBarriers& barriers, const RingShape& shape)
      : StageRing(barriers.ring, shape), ready_(barriers.ready) {}

  // By one thread of the block, before a __syncthreads.
  __device__ __forceinline__ void initialise(int consumer_warps) {
    for (int i = 0; i < shape_.stages; ++i) barrier_init(ready_[i], kPreparingWarps);
    StageRing::initialise(consumer_warps);
  }

  // Preparing warps: what this warp has written may be multiplied.
  __device__ __forceinline__ void announce() {
    fence_async_proxy();
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(ready_[stage_]);
  }

  // Consumer: waits until the stage is full and its second operand prepared.
  __device__ __forceinline__ unsigned char* await_ready() {
    unsigned char* stage = await();
    barrier_wait(ready_[stage_], parity_);
    return stage;
  }

 private:
  Barrier* ready_;
};

// Registers per thread: preparing warps need more than one that copies, so consumers get fewer than
// become_consumer gives them.
template <int kRegisters>
__device__ __forceinline__ void become_preparer() {
  lower_registers<kRegisters>();
}
template <int kConsumers, int kOfPreparer>
__device__ __forceinline__ void become_prepared_consumer() {
  constexpr int kAll = kConsumers == 2 ? 3 * 168 : 4 * 128;  // what the kernel starts with
  raise_registers<(kAll - kOfPreparer) / kConsumers / 8 * 8>();
}

__device__ __forceinline__ float4 round_tf32(float4 v) {
  return float4{round_tf32(v.x), round_tf32(v.y), round_tf32(v.z), round_tf32(v.w)};
}

__device__ __forceinline__ uint32_t rounded_bits(float x) {
  const float rounded = round_tf32(x);
  uint32_t bits;
  memcpy(&bits, &rounded, sizeof(bits));
  return bits;
}

// Sixteen terms of a row in the 64-byte swizzle, as two products want them: rounded, in slots. `row`
// begins at a multiple of 64 bytes; `terms` is called with their numbers.
template <class Terms>
__device__ __forceinline__ void store_slots(float* row, const Terms& terms) {
  const int swizzle = int(reinterpret_cast<uintptr_t>(row) / 128 % 4);
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
    const int first = chunk / 2 * kTermsTf32 + chunk % 2;
    store4_operand(
        row + (chunk ^ swizzle) * 4,
        round_tf32(float4{terms(first), terms(first + 2), terms(first + 4), terms(first + 6)}));
  }
}

// `count` rows of sixteen terms in the 64-byte swizzle, by all preparing warps; term n of a row comes
// from its value number `order(n)`.
template <class Order>
__device__ __forceinline__ void prepare_rows(float* rows, int count, const Order& order) {
#pragma unroll 1
  for (int i = threadIdx.x % kWarpgroup - 32; i < count; i += kPreparingWarps * 32) {
    float* row = rows + i * 16;
    float4 v[4];
#pragma unroll
    for (int chunk = 0; chunk < 4; ++chunk) v[chunk] = load4(row + (chunk ^ i / 2 % 4) * 4);
    store_slots(row, [&](int n) {
      const float4& quad = v[order(n) / 4];
      const int place = order(n) % 4;
      return place == 0 ? quad.x : place == 1 ? quad.y : place == 2 ? quad.z : quad.w;
    });
  }
}

// A float32 activation in blocks of 64 images.
inline Activation float_activation(
    const void* data, int64_t maps, int64_t rows, int64_t columns, int64_t blocks) {
  const int64_t pixels = rows * columns;
  return {data,
          maps,
          columns,
          rows,
          blocks,
          pixels * kSpanTf32,
          kSpanTf32,
          columns * kSpanTf32,
          maps * pixels * kSpanTf32};
}

// Boxes of `lanes` lanes, a span of the swizzle, of `maps` maps of `columns` neighbouring columns.
inline TensorMap load_map_tf32(
    const char* what, const Activation& a, int lanes, int maps, int columns, Swizzle swizzle) {
  return tensor_map(what, Element::float32, a.data, {64, a.maps, a.columns, a.rows, a.blocks},
                    {a.map_stride, a.column_stride, a.row_stride, a.block_stride},
                    {lanes, maps, columns, 1, 1}, swizzle);
}

}  // namespace convnet
