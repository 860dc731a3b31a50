// One value per image from all of its features, [N/L][features][L]: what the costs compute.
//
// Work       a block of 256 threads per 4 neighbouring lanes: 64 threads share the features of a lane,
//            thread i those of i, i + 64, .... Lanes are few, less than a sector of memory has, so that
//            even a small batch occupies many multiprocessors: there is little to read, and much to do.
// Shared     1024 bytes: one value, a float or an int, of 64 threads x 4 lanes.
// Barriers   in reduce(): what the upper half wrote is visible to the lower one, and the result to
//            all; the last one keeps the next reduction from overwriting it.
#pragma once
#include <cstdint>

#include "../arch/arch.cuh"

namespace convnet {

constexpr int kLanes = 4;
constexpr int kSegments = 64;  // threads per lane
constexpr int kThreads = kLanes * kSegments;

template <class T>
struct Columns {
  T value[kSegments][kLanes];
};

// Combines the values of one lane's threads pairwise, in an order that depends on kSegments alone.
// Returns it to all of them.
template <class T, class Combine>
__device__ __forceinline__ T reduce(T mine, Combine combine) {
  Columns<T>& columns = shared_storage<Columns<T>>();
  const int lane = static_cast<int>(threadIdx.x) % kLanes,
            segment = static_cast<int>(threadIdx.x) / kLanes;
  columns.value[segment][lane] = mine;
#pragma unroll
  for (int half = kSegments / 2; half > 0; half /= 2) {
    __syncthreads();  // the values of the upper half are there
    if (segment < half)
      columns.value[segment][lane] =
          combine(columns.value[segment][lane], columns.value[segment + half][lane]);
  }
  __syncthreads();  // the result is there
  const T result = columns.value[0][lane];
  __syncthreads();  // everybody has read it: the next reduction may overwrite it
  return result;
}

// The image of this thread, and the value of its feature 0.
struct LanePosition {
  int segment;
  int64_t n, first;
};

__device__ __forceinline__ LanePosition lane_position(int64_t features, int64_t lanes) {
  const int64_t n = int64_t{blockIdx.x} * kLanes + threadIdx.x % kLanes;
  const int64_t block = blockIdx.x / static_cast<unsigned>(lanes / kLanes);
  return {static_cast<int>(threadIdx.x) / kLanes, n,
          block * features * lanes + (n - block * lanes)};
}

}  // namespace convnet
