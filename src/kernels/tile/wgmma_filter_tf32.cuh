// Filter-gradient products in tf32 on Hopper: wgmma_filter.cuh with float32 in memory.
//
// What       as wgmma_filter.cuh. Operands are rounded to tf32 on their way to the products.
// GEMM       as there; of sixteen lanes two products each take eight: the first one lanes 0, 4, 8, 12, 1,
//            5, 9, 13, the second one those two further on.
// Stage      what one chunk needs for a quarter of its lanes:
//              x   [(pixels - 1) * stride + kTaps pixels][kChannels][16 lanes], in the 64-byte swizzle
//              dy  [pixels][kFilters][16 lanes]
// Operands   A = dy, through registers: a thread's fragments of two products are four neighbouring lanes
//            of two filters. B = x, prepared (wgmma_tf32.cuh): rounded where it lies.
// Bias       as there, from the same registers: a thread's four lanes, pixel after pixel of every quarter,
//            then those of the four threads that share a filter.
// Epilogue   as there.
#pragma once
#include "wgmma_filter.cuh"
#include "wgmma_tf32.cuh"

namespace convnet {

// Its stages are those of a bfloat16 tile, with half as many lanes.
template <int kConsumerCount, int kTapsPerTile, int kChannelsPerTile>
struct FilterTileTf32 : FilterTile<kConsumerCount, kTapsPerTile, kChannelsPerTile> {
  static constexpr Precision kPrecision = Precision::tf32;
  static constexpr int kLanes = 16, kQuarters = 4, kProducts = 2;  // of eight lanes
  static constexpr int kOfPreparer = 56;                           // registers
};

template <class T>
__device__ __forceinline__ void produce_quarters(const FilterProblem& p,
                                                 const TensorMap& dy,
                                                 const TensorMap& x,
                                                 PreparedRing ring) {
  for_parts<T>(p, [&](const FilterPart<T>& part) {
    for (FilterWalk walk(p, part); walk.left > 0; walk.next(p)) {
      const int column = walk.column(p);
      for (int lane = 0; lane < 64; lane += T::kLanes) {
        unsigned char* stage = ring.begin(p.x_bytes + p.dy_bytes);
        tma_load(stage, x, ring.full(), lane, part.group * p.C + part.channel,
                 column * p.stride - p.pad_left + part.s, walk.row * p.stride - p.pad_top + part.r,
                 walk.block);
        tma_load(stage + p.x_bytes, dy, ring.full(), lane, part.group * p.K + part.filter, column,
                 walk.row, walk.block);
        ring.next();
      }
    }
  });
}

template <class T>
__device__ __forceinline__ void prepare(const FilterProblem& p, PreparedRing ring) {
  for_parts<T>(p, [&](const FilterPart<T>& part) {
    for (int left = (part.last_chunk - part.first_chunk) * T::kQuarters; left > 0; --left) {
      prepare_rows(reinterpret_cast<float*>(ring.await()), p.x_bytes / T::kRow,
                   [](int n) { return n % kTermsTf32 / 2 * 4 + n / kTermsTf32 * 2 + n % 2; });
      ring.announce();
      ring.next();
    }
  });
}

// The products of one pixel, each a group of its own. `dy`: the thread's first filter and lanes, which
// are added to the sums of the bias.
template <class T>
__device__ __forceinline__ void multiply_pixel(float (&sum)[T::kColumns / 2],
                                               uint32_t (&fragments)[T::kProducts][4],
                                               float (&bias)[2],
                                               const float* dy,
                                               uint64_t x) {
  const float4 u = load4(dy), v = load4(dy + 8 * T::kLanes);
  bias[0] += (u.x + u.y) + (u.z + u.w);
  bias[1] += (v.x + v.y) + (v.z + v.w);
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

// Four neighbouring lanes of a warp hold sums of the same two filters. All lanes must call.
template <class T>
__device__ __forceinline__ void store_bias(const FilterProblem& p,
                                           const FilterPart<T>& part,
                                           const float (&bias)[2],
                                           int filter,
                                           float* dbias) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float pair = bias[half] + warp_shuffle_xor(bias[half], 1);
    const float sum = pair + warp_shuffle_xor(pair, 2);
    const int k = filter + 8 * half;
    if (threadIdx.x % 4 == 0 && k < p.K) dbias[part.group * p.K + k] = sum;
  }
}

template <class T>
__device__ __forceinline__ void consume(const FilterProblem& p,
                                        int warpgroup,
                                        const StoreSums& out,
                                        PreparedRing ring) {
  const int warp = threadIdx.x % kWarpgroup / 32, lane = threadIdx.x % 32;
  const int filter = 64 * warpgroup + 16 * warp + lane / 4;  // of the tile, the thread's first one
  for_parts<T>(p, [&](const FilterPart<T>& part) {
    const bool works = T::works(p, part, warpgroup);
    typename T::Sums sum;
    T::clear(sum);
    float bias[2] = {0.0f, 0.0f};

    uint32_t fragments[T::kProducts][4];  // one is rounded while the other is multiplied
    for (FilterWalk walk(p, part); walk.left > 0; walk.next(p)) {
      const int pixels = works ? walk.pixels(p) : 0;
      for (int quarter = 0; quarter < T::kQuarters; ++quarter) {
        unsigned char* stage = ring.await_ready();
        const float* dy =
            reinterpret_cast<float*>(stage + p.x_bytes) + filter * T::kLanes + lane % 4 * 4;
        const uint64_t x = operand(stage, kAtom, 8 * T::kRow, Swizzle::bytes64);
#pragma unroll 1
        for (int i = 0; i < pixels; ++i)
          multiply_pixel<T>(sum, fragments, bias, dy + i * T::kFilters * T::kLanes,
                            advance(x, i * p.stride * T::kXBytes));
        wgmma_wait<0>();  // the other warpgroups multiply meanwhile
        ring.next();
        ring.release(1);
      }
    }
    T::hold(sum);
    // Computed again: meanwhile its registers were the products'.
    const FilterPart<T> end(p, warp_uniform(part.unit), warp_uniform(part.run_end));
    const auto store = [&](int number) {
      T::store(p, end, sum, warpgroup, out.dweight + number * p.part_stride);
      if (out.dbias && end.sees_all(p))
        store_bias<T>(p, end, bias, end.filter + filter, out.dbias + number * p.part_stride);
    };
    store(end.number);
    T::clear(sum);
    bias[0] = bias[1] = 0.0f;
    for (int number = end.number + 1; end.last && number < p.parts; ++number)
      store(number);  // it has no such part
  });
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    wgmma_filter_tf32_kernel(const __grid_constant__ TensorMap dy,
                             const __grid_constant__ TensorMap x,
                             const __grid_constant__ FilterProblem p,
                             const StoreSums out) {
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
    consume<T>(p, warpgroup, out, ring);
  }
}

// ---- host

template <class T>
void launch_filter_tf32(const char* op, const FilterCall& call, Stream stream) {
  const FilterProblem p = filter_problem<T>(op, call);
  const int x_pixels = int(x_pixels_of<T>(call.stride, p.chunk_pixels));
  launch(wgmma_filter_tf32_kernel<T>, Dim3(unsigned(std::min(p.runs, multiprocessors()))),
         Dim3(T::kThreads), std::size_t(p.ring.bytes()), stream,
         load_map_tf32("dy", call.dy, T::kLanes, T::kFilters, p.chunk_pixels, Swizzle::none),
         load_map_tf32("x", call.x, T::kLanes, T::kChannels, x_pixels, Swizzle::bytes64), p,
         StoreSums{call.dbias, call.dweight});
}

}  // namespace convnet
