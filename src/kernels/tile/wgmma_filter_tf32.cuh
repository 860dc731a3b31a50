// Filter-gradient products in tf32 on Hopper: wgmma_filter.cuh with float32 in memory.
//
// What       as wgmma_filter.cuh. Operands are rounded to tf32 on their way to the products.
// GEMM       as there; of sixteen lanes two products each take eight: the first one lanes 0, 4, 8, 12, 1,
//            5, 9, 13, the second one those two further on.
// Stage      what one chunk needs for a quarter of its lanes:
//              dy  [pixels][kFilters][16 lanes]
//              x   [(pixels - 1) * stride + kTaps pixels][kChannels][16 lanes], in the 64-byte swizzle
// Operands   A = dy, through registers: a thread's fragments of two products are four neighbouring lanes
//            of two filters. B = x, prepared (wgmma_tf32.cuh): rounded where it lies.
// Epilogue   as there.
#pragma once
#include "wgmma_filter.cuh"
#include "wgmma_tf32.cuh"

namespace convnet {

// Its stages are those of a bfloat16 tile, with half as many lanes.
template <int kConsumerCount, int kTapsPerTile, int kChannelsPerTile>
struct FilterTileTf32 : FilterTile<kConsumerCount, kTapsPerTile, kChannelsPerTile> {
  static constexpr int kLanes = 16, kQuarters = 4, kProducts = 2;  // of eight lanes
  static constexpr int kOfPreparer = 56;                           // registers
};

template <class T>
__device__ __forceinline__ int x_pixels(const FilterProblem& p) {
  return (p.chunk_pixels - 1) * p.stride + T::kTaps;
}

template <class T>
__device__ __forceinline__ void produce_quarters(const FilterProblem& p,
                                                 const TensorMap& dy,
                                                 const TensorMap& x,
                                                 PreparedRing ring) {
  const int dy_bytes = p.chunk_pixels * T::kDyBytes;
  const int tiles = int(p.tiles());
  for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
    const FilterPlace<T> place(p, index);
    for (FilterWalk walk(p, place.first_chunk, place.last_chunk); walk.left > 0; walk.next(p)) {
      if (!walk.exists(p, place.r)) continue;
      const int column = walk.column(p);
      for (int lane = 0; lane < 64; lane += T::kLanes) {
        unsigned char* stage = ring.begin(dy_bytes + x_pixels<T>(p) * T::kXBytes);
        tma_load(stage, dy, ring.full(), lane, place.group * p.K + place.filter, column, walk.row,
                 walk.block);
        tma_load(stage + dy_bytes, x, ring.full(), lane, place.group * p.C + place.channel,
                 column * p.stride - p.pad_left + place.s, walk.input_row(p, place.r), walk.block);
        ring.next();
      }
    }
  }
}

template <class T>
__device__ __forceinline__ int stages_of(const FilterProblem& p, const FilterPlace<T>& place) {
  int chunks = 0;
  for (FilterWalk walk(p, place.first_chunk, place.last_chunk); walk.left > 0; walk.next(p))
    chunks += walk.exists(p, place.r);
  return chunks * T::kQuarters;
}

template <class T>
__device__ __forceinline__ void prepare(const FilterProblem& p, PreparedRing ring) {
  const int tiles = int(p.tiles());
  for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
    for (int left = stages_of(p, FilterPlace<T>(p, index)); left > 0; --left) {
      prepare_rows(reinterpret_cast<float*>(ring.await() + p.chunk_pixels * T::kDyBytes),
                   x_pixels<T>(p) * T::kChannels,
                   [](int n) { return n % kTermsTf32 / 2 * 4 + n / kTermsTf32 * 2 + n % 2; });
      ring.announce();
      ring.next();
    }
  }
}

// The products of one pixel, each a group of its own. `dy`: the thread's first filter and lanes.
template <class T>
__device__ __forceinline__ void multiply_pixel(float (&sum)[T::kColumns / 2],
                                               uint32_t (&fragments)[T::kProducts][4],
                                               const float* dy,
                                               uint64_t x) {
  const float4 u = load4(dy), v = load4(dy + 8 * T::kLanes);
#pragma unroll
  for (int n = 0; n < T::kProducts; ++n) {
    wgmma_wait<1>();  // the product of these registers before this one is done
    uint32_t (&a)[4] = fragments[n];
    a[0] = rounded_bits(n == 0 ? u.x : u.z), a[1] = rounded_bits(n == 0 ? v.x : v.z);
    a[2] = rounded_bits(n == 0 ? u.y : u.w), a[3] = rounded_bits(n == 0 ? v.y : v.w);
    hold(a);
    wgmma_fence();
    wgmma_tf32<T::kColumns>(sum, a, advance(x, n * kTermsTf32 * 4));
    wgmma_commit();
  }
}

template <class T>
__device__ __forceinline__ void consume(const FilterProblem& p,
                                        int warpgroup,
                                        float* dweight,
                                        PreparedRing ring) {
  const int dy_bytes = p.chunk_pixels * T::kDyBytes;
  const int warp = threadIdx.x % kWarpgroup / 32, lane = threadIdx.x % 32;
  const int filter = 64 * warpgroup + 16 * warp + lane / 4;  // of the tile, the thread's first one
  const int tiles = int(p.tiles());
  for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
    const FilterPlace<T> place(p, index);
    const bool works = place.filter + 64 * warpgroup < p.K;  // else its filters do not exist
    float sum[T::kColumns / 2];
#pragma unroll
    for (int i = 0; i < T::kColumns / 2; ++i) sum[i] = 0.0f;
    hold(sum);

    uint32_t fragments[T::kProducts][4];  // one is rounded while the other is multiplied
    for (FilterWalk walk(p, place.first_chunk, place.last_chunk); walk.left > 0; walk.next(p)) {
      if (!walk.exists(p, place.r)) continue;
      const int pixels = works ? walk.column_end(p) - walk.column(p) : 0;
      for (int quarter = 0; quarter < T::kQuarters; ++quarter) {
        unsigned char* stage = ring.await_ready();
        const float* dy = reinterpret_cast<float*>(stage) + filter * T::kLanes + lane % 4 * 4;
        const uint64_t x = operand(stage + dy_bytes, kAtom, 8 * T::kRow, Swizzle::bytes64);
#pragma unroll 1
        for (int i = 0; i < pixels; ++i)
          multiply_pixel<T>(sum, fragments, dy + i * T::kFilters * T::kLanes,
                            advance(x, i * p.stride * T::kXBytes));
        wgmma_wait<0>();  // the other warpgroups multiply meanwhile
        ring.next();
        ring.release(1);
      }
    }
    hold(sum);
    if (!works) continue;
    // Computed again: meanwhile its registers were the products'.
    const FilterPlace<T> end(p, warp_uniform(index));
    const bool whole = end.s + T::kTaps <= p.S && end.channel + T::kChannels <= p.C &&
                       end.filter + 64 * (warpgroup + 1) <= p.K;
    if (whole)
      store_sums<T, true>(p, end, sum, end.filter + filter, dweight);
    else
      store_sums<T, false>(p, end, sum, end.filter + filter, dweight);
  }
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    wgmma_filter_tf32_kernel(const __grid_constant__ TensorMap dy,
                             const __grid_constant__ TensorMap x,
                             const __grid_constant__ FilterProblem p,
                             float* dweight) {
  PreparedRing ring(shared_storage<PreparedBarriers>(), p.ring);
  if (threadIdx.x == 0) ring.initialise(T::kConsumers * kWarpgroup / 32);
  begin_kernel();
  __syncthreads();  // the barriers exist

  const int warpgroup = warp_uniform(int(threadIdx.x) / kWarpgroup);
  if (warpgroup == T::kConsumers) {
    become_preparer<T::kOfPreparer>();
    if (threadIdx.x / 32 % 4 != 0) {
      prepare<T>(p, ring);
    } else if (elect_one()) {
      prefetch(dy);
      prefetch(x);
      produce_quarters<T>(p, dy, x, ring);
    }
  } else {
    become_prepared_consumer<T::kConsumers, T::kOfPreparer>();
    consume<T>(p, warpgroup, dweight, ring);
  }
}

// ---- host

template <class T>
void launch_filter_tf32(const char* op, const FilterCall& call, Stream stream) {
  const FilterProblem p = filter_problem<T>(op, call);
  const int x_pixels = int(T::x_pixels(call.stride, p.chunk_pixels));
  launch(wgmma_filter_tf32_kernel<T>,
         Dim3(unsigned(std::min<int64_t>(p.tiles(), multiprocessors()))), Dim3(T::kThreads),
         std::size_t(p.ring.bytes()), stream,
         load_map_tf32("dy", call.dy, T::kLanes, T::kFilters, p.chunk_pixels, Swizzle::none),
         load_map_tf32("x", call.x, T::kLanes, T::kChannels, x_pixels, Swizzle::bytes64), p,
         call.dweight);
}

}  // namespace convnet
