// The ring of shared-memory stages between the warp that copies and the warpgroups that multiply (sm_90a).
//
// What       A block is one producer warpgroup, of which one thread works, and two or three consumer
//            warpgroups. The producer fills the stages in turn by tensor copies; consumers multiply
//            straight from them and hand them back. Every stage has two mbarriers: `full` completes
//            when all bytes of a filling have arrived, `empty` when every consumer warp has let go.
// Clusters   Blocks of a cluster fill each other's stages with what all of them need (copy_shared). They
//            all go through the same fillings in the same order, and `empty` counts the consumer warps
//            of all blocks, since a copy overwrites a stage in all of them: a block is at most one
//            filling of a stage ahead of the others. A block ends when all have let go of all of its
//            stages: nothing is on its way to it then.
// Stage and  are one thing: a StageRing knows its place and how often it came round. A barrier's phase p
// phase      has parity p & 1; the first filling of a stage waits for the phase before the first,
//            which counts as complete.
// Order      all threads: meet(). Producer: begin() - tma_load()s - next(), and in the end drain().
//            Consumer: await() - wgmma, commit - next(), and release() of that stage once a wgmma_wait
//            covers what read it.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../arch/arch.cuh"

namespace convnet {

constexpr int kWarpgroup = 128;  // threads
constexpr int kMostStages = 8;
constexpr int kMostShared = 232448;  // bytes of shared memory per block on sm_90
constexpr int kStagesOffset = 1024;  // stages begin at a multiple of the widest swizzle pattern
constexpr int kSpan = 128;           // bytes of the 64 image lanes of a bfloat16 activation
constexpr int kAtom = 8 * kSpan;     // eight rows of a span: the unit of the 128-byte swizzle
constexpr int kTerms = 16;           // of the reduction, per wgmma

struct RingBarriers {
  Barrier full[kMostStages], empty[kMostStages];
};
static_assert(sizeof(RingBarriers) <= kStagesOffset);

// By value from host to kernel.
struct RingShape {
  int stages;
  int stage_bytes;  // a multiple of 1024

  __host__ __device__ int bytes() const { return kStagesOffset + stages * stage_bytes; }
};

// As many stages as fit beside `others` bytes; fewer than two: the variant cannot take the shape.
inline RingShape ring_shape(int64_t stage_bytes, int64_t others) {
  const int64_t fit = (kMostShared - kStagesOffset - others) / stage_bytes;
  return RingShape{static_cast<int>(std::clamp<int64_t>(fit, 0, kMostStages)),
                   static_cast<int>(std::min<int64_t>(stage_bytes, kMostShared))};
}

template <int kCluster>
class ClusterRing {
 public:
  __device__ __forceinline__ ClusterRing(RingBarriers& barriers, const RingShape& shape)
      : barriers_(barriers), shape_(shape) {}

  // By one thread of the block, before all meet. `consumer_warps`: of a block.
  __device__ __forceinline__ void initialise(int consumer_warps) {
    for (int i = 0; i < shape_.stages; ++i) {
      barrier_init(barriers_.full[i], 1);
      barrier_init(barriers_.empty[i], kCluster * consumer_warps);
    }
    fence_barrier_init();
  }

  // All threads, before the first filling: the barriers of all blocks exist then.
  __device__ __forceinline__ void meet() {
    if constexpr (kCluster > 1)
      cluster_sync();
    else
      __syncthreads();
  }

  // Producer: waits until the stage is free.
  __device__ __forceinline__ void await_empty() {
    barrier_wait(barriers_.empty[stage_], parity_ ^ 1);
  }

  // Producer: the same, and announces how many bytes will arrive in it.
  __device__ __forceinline__ unsigned char* begin(int bytes) {
    await_empty();
    barrier_expect(barriers_.full[stage_], bytes);
    return data();
  }
  __device__ __forceinline__ Barrier& full() { return barriers_.full[stage_]; }

  // Producer, behind the last filling: waits until the other blocks reach this one no more.
  __device__ __forceinline__ void drain() {
    for (int i = 0; kCluster > 1 && i < shape_.stages; ++i, next()) await_empty();
  }

  // Producer: a box for this stage that all blocks of the cluster need; the one whose turn it is sends
  // for it.
  __device__ __forceinline__ void copy_shared(
      int turn, void* target, const TensorMap& map, int c0, int c1, int c2, int c3, int c4) {
    if constexpr (kCluster == 1)
      tma_load(target, map, full(), c0, c1, c2, c3, c4);
    else if (turn % kCluster == cluster_rank())
      tma_load_multicast(target, map, full(), (1 << kCluster) - 1, c0, c1, c2, c3, c4);
  }

  // Consumer: waits until the stage is full.
  __device__ __forceinline__ unsigned char* await() {
    barrier_wait(barriers_.full[stage_], parity_);
    return data();
  }

  __device__ __forceinline__ void next() {
    if (++stage_ == shape_.stages) stage_ = 0, parity_ ^= 1;
  }

  // Consumer, all warps: this warp has read the stage that lies `back` behind for the last time. One
  // lane tells each block.
  __device__ __forceinline__ void release(int back) {
    const int lane = threadIdx.x % 32;
    if (lane >= kCluster) return;
    const int stage = stage_ - back;
    Barrier& empty = barriers_.empty[stage < 0 ? stage + shape_.stages : stage];
    if constexpr (kCluster > 1)
      barrier_arrive_at(empty, lane);
    else
      barrier_arrive(empty);
  }

 protected:
  __device__ __forceinline__ unsigned char* data() const {
    return reinterpret_cast<unsigned char*>(&barriers_) + kStagesOffset +
           stage_ * shape_.stage_bytes;
  }

  RingBarriers& barriers_;
  const RingShape& shape_;
  int stage_ = 0;
  uint32_t parity_ = 0;
};

using StageRing = ClusterRing<1>;

// Registers per thread: the kernel starts with an equal share of 65536 (168 or 128 per thread), of
// which the producer keeps kOfProducer and gives the others to the consumers.
template <int kConsumers, int kOfProducer = kConsumers == 2 ? 24 : 32>
__device__ __forceinline__ void become_producer() {
  lower_registers<kOfProducer>();
}
template <int kConsumers, int kOfProducer = kConsumers == 2 ? 24 : 32>
__device__ __forceinline__ void become_consumer() {
  constexpr int kAll = kConsumers == 2 ? 3 * 168 : 4 * 128;
  raise_registers<(kAll - kOfProducer) / kConsumers / 8 * 8>();
}

// Numbers rows from the middle outwards: those at the rim, where taps fall outside, come last, so that the last
// tiles of a launch are its shortest.
__device__ __forceinline__ int row_from_middle(int rank, int rows) {
  const int middle = (rows - 1) / 2;
  return rank % 2 ? middle + (rank + 1) / 2 : middle - rank / 2;
}

}  // namespace convnet
