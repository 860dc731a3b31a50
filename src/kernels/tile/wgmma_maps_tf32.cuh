// Forward and data-gradient products in tf32 on Hopper: wgmma_maps.cuh with float32 in memory.
//
// What       as wgmma_maps.cuh, for stride 1 and filters of kTaps columns. Operands are rounded to
//            tf32 on their way to the products.
// GEMM       GEMM-M = 64 image lanes of one pixel, GEMM-N = kMaps maps; reduction over (r, chunk of
//            eight input maps, s, 8 maps), in this order whatever the tile. Rows of taps outside of the
//            image are not even loaded; columns of them are zeros.
// Tile       up to kPixels neighbouring pixels of a row, 64 images, kMaps maps of a group. Consumer
//            warpgroups take runs of neighbouring pixels, which share most of their strip.
// Stage      what one filter row and one chunk of kDepth input maps need:
//              strip    [2 halves of the lanes][kPixels - 1 + kTaps pixels][kDepth maps][32 lanes], in
//                       the 128-byte swizzle
//              weights  forward, as they arrive [kTaps][kMaps / 32][kDepth][32 maps]; backward
//                       [kTaps][kMaps][kDepth], in the 64-byte swizzle; prepared, this in both
// Operands   A = a pixel of the strip, through registers: once loaded and rounded, it serves all taps
//            and pixels of the warpgroup that read it. B = weights, prepared (wgmma_tf32.cuh): rounded
//            where they lie, and forward transposed, 32 x kDepth of them at a time by a warp.
// Rows       of a product are lanes in the order 0, 2, ..., 14, 1, 3, ..., 15 of a warp's sixteen, so
//            that a thread reads and writes neighbours.
// Epilogue   float32 sums + bias, ReLU, or under a mask, straight to memory in sectors of 32 bytes. The
//            mask is asked for when a tile begins, to be in the second level of cache when it ends.
// Schedule   as wgmma_maps.cuh.
#pragma once
#include "wgmma_maps.cuh"
#include "wgmma_tf32.cuh"

namespace convnet {

template <int kMapsPerTile,
          int kPixelsPerTile,
          int kConsumerCount,
          int kTapsPerRow,
          bool kForwardPass>
struct MapsTileTf32 {
  static constexpr int kMaps = kMapsPerTile, kPixels = kPixelsPerTile, kTaps = kTapsPerRow;
  static constexpr bool kForward = kForwardPass;
  static constexpr int kConsumers = kConsumerCount;
  static constexpr int kOfPreparer = kConsumers == 2 ? 40 : 56;  // registers
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroup;
  static constexpr int kPixelsEach = (kPixels + kConsumers - 1) / kConsumers;  // at most
  static constexpr int kDepth = 16, kSteps = kDepth / kTermsTf32;
  static_assert(kSteps % 2 == 0, "fragments alternate");
  static constexpr int kStrip = kPixels - 1 + kTaps;  // pixels
  static constexpr int kPixelBytes = kDepth * 128;    // of half the lanes
  static constexpr int kPixelFloats = kPixelBytes / 4;
  static constexpr int kHalfBytes = kStrip * kPixelBytes;
  static constexpr int kRowBytes = kDepth * 4;  // of weights: a span of the 64-byte swizzle
  static constexpr int kTapBytes = kMaps * kRowBytes;
  static constexpr int kStageBytes = 2 * kHalfBytes + kTaps * kTapBytes;
  static constexpr int kBox = 32;  // maps: rows of weights that a warp transposes
  // Maps that are stored at a time: fewer where sums leave few registers.
  static constexpr int kChunk = kPixelsEach * kMaps > 256 ? 8 : 16;
  static_assert(kMaps % 16 == 0 && kMaps <= 256 && kMaps % kChunk == 0 &&
                (!kForward || kMaps % kBox == 0));
  static_assert(kStrip <= 256);

  static RingShape ring() { return ring_shape(round_up(kStageBytes, kAtom), 0); }

  // Filters whose weights can be copied in boxes, and as MapsTile.
  static bool takes(const ConvShape& s, int64_t in_maps, int64_t out_columns) {
    const int64_t filters = s.K / s.groups;
    return s.lanes == 64 && s.stride == 1 && s.S == kTaps && out_columns < 1 << 15 &&
           filters % (kForward ? kBox : 4) == 0 && 3 * in_maps >= 2 * round_up(in_maps, kDepth) &&
           (s.groups == 1 || in_maps % kDepth == 0);
  }
};

template <class T>
__device__ __forceinline__ int stages_of(const MapsPlace<T>& place) {
  return max(0, place.r_end - place.r_begin) * (place.chunk_end - place.chunk_begin);
}

template <class T>
__device__ __forceinline__ void produce(const MapsProblem& p,
                                        const TensorMap& in,
                                        const TensorMap& weight,
                                        PreparedRing ring) {
  for_tiles<1>(p, [&](int index) {
    const MapsPlace<T> place(p, index);
    for (int r = place.r_begin; r < place.r_end; ++r)
      for (int chunk = place.chunk_begin; chunk < place.chunk_end; ++chunk) {
        unsigned char* stage = ring.begin(T::kStageBytes);
        const int c = chunk * T::kDepth;
        for (int half = 0; half < 2; ++half)
          tma_load(stage + half * T::kHalfBytes, in, ring.full(), 32 * half,
                   place.group * p.in_maps + c, place.column - p.pad_left,
                   place.row - p.pad_top + r, place.block);
        unsigned char* weights = stage + 2 * T::kHalfBytes;
        if constexpr (T::kForward)
          tma_load(weights, weight, ring.full(), 0, place.group * p.in_maps + c,
                   place.map / T::kBox, r * T::kTaps, 0);
        else
          tma_load(weights, weight, ring.full(), c, place.group * p.out_maps + place.map,
                   (p.R - 1 - r) * T::kTaps, 0, 0);
        ring.next();
      }
  });
}

// The weights of a stage, by all preparing warps.
template <class T>
__device__ __forceinline__ void prepare_weights(float* weights) {
  constexpr int kRows = T::kTaps * T::kMaps;
  if constexpr (T::kForward) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroup / 32 - 1;
#pragma unroll 1
    for (int first = warp * T::kBox; first < kRows; first += kPreparingWarps * T::kBox) {
      float* box = weights + first * T::kDepth;
      float v[T::kDepth];
#pragma unroll
      for (int c = 0; c < T::kDepth; ++c) v[c] = box[c * T::kBox + lane];
      __syncwarp();  // all lanes have read what the others overwrite
      store_slots(box + lane * T::kDepth, [&](int c) { return v[c]; });
    }
  } else {
    prepare_rows(weights, kRows, [](int k) { return k; });
  }
}

template <class T>
__device__ __forceinline__ void prepare(const MapsProblem& p, PreparedRing ring) {
  for_tiles<1>(p, [&](int index) {
    const MapsPlace<T> place(p, index);
    for (int left = stages_of(place); left > 0; --left) {
      prepare_weights<T>(reinterpret_cast<float*>(ring.await() + 2 * T::kHalfBytes));
      ring.announce();
      ring.next();
    }
  });
}

// What a thread reads and writes of a pixel: two neighbouring lanes, number `lane` and the next.
struct MapsThread {
  int warp = threadIdx.x % kWarpgroup / 32, quad = threadIdx.x % 4;
  int lane = warp * 16 + threadIdx.x % 32 / 4 * 2;
};

// Fragments of some neighbouring pixels of the strip, for eight maps: of those that kCount pixels of
// the tile need, as many as leave registers for their sums.
template <class T, int kCount>
struct MapsFragments {
  static constexpr int kStrip = kCount - 1 + T::kTaps;
  static constexpr int kGroups = (kStrip + 2) / 3;  // of products, to go through the strip
  static constexpr int kPixels = (kStrip + kGroups - 1) / kGroups;
  uint32_t a[kPixels][4];

  // `strip`: the thread's half of the lanes from pixel 0 on.
  __device__ __forceinline__ void load(const float* strip, int step, int group) {
    const MapsThread me;
    const int map = 2 * me.quad;  // and the next one
    const int chunk = me.lane % 32 / 4, rest = me.lane % 4;
    const float* even = strip + (step * kTermsTf32 + map) * 32 + (chunk ^ map) * 4 + rest;
    const float* odd = strip + (step * kTermsTf32 + map + 1) * 32 + (chunk ^ (map + 1)) * 4 + rest;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int pixel = group * kPixels + i;
      if (pixel >= kStrip) continue;
      const float2 x = load2(even + pixel * T::kPixelFloats),
                   y = load2(odd + pixel * T::kPixelFloats);
      a[i][0] = rounded_bits(x.x), a[i][1] = rounded_bits(x.y);
      a[i][2] = rounded_bits(y.x), a[i][3] = rounded_bits(y.y);
    }
#pragma unroll
    for (int i = 0; i < kPixels; ++i)
      if (group * kPixels + i < kStrip) hold(a[i]);
  }

  // A group of all their products, without a branch between them.
  __device__ __forceinline__ void multiply(float (&sum)[kCount][T::kMaps / 2],
                                           uint64_t weights,
                                           int group) const {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kPixels; ++i)
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const int s = group * kPixels + i - j;
        if (s < 0 || s >= T::kTaps) continue;
        wgmma_tf32<T::kMaps>(sum[j], a[i],
                             advance(weights, (T::kForward ? s : T::kTaps - 1 - s) * T::kTapBytes));
      }
    wgmma_commit();
  }
};

// Where sums go, and what they meet on the way.
struct MapsOutputTf32 {
  const float* bias;  // null: none; of a forward tile
  const float* mask;  // null: none; of a backward tile
  float* out;
};

// One thread's part of a pixel.
template <class T>
struct MapsPixel {
  const MapsProblem& p;
  const MapsOutputTf32& to;
  int map;         // of the group, the thread's first one
  int first;       // the same of all groups
  int64_t offset;  // of this map

  __device__ __forceinline__
  MapsPixel(const MapsProblem& p, const MapsOutputTf32& to, const MapsPlace<T>& place, int column)
      : p(p), to(to) {
    const MapsThread me;
    map = place.map + 2 * me.quad;
    first = place.group * p.out_maps + map;
    offset = place.block * p.block_stride + first * p.map_stride + place.row * p.row_stride +
             column * p.column_stride + me.lane;
  }

  // By one thread of those whose lanes share a line.
  __device__ __forceinline__ void prefetch_mask() const {
    if (threadIdx.x % 64 >= 4) return;
#pragma unroll 1
    for (int m = 0; m < T::kMaps; m += 8)
      for (int e = 0; e < 2; ++e)
        if (map + m + e < p.out_maps) prefetch_l2(to.mask + offset + (m + e) * p.map_stride);
  }

  __device__ __forceinline__ float2 finished(float x, float y, float bias) const {
    x += bias, y += bias;
    if (p.relu && x <= 0.0f) x = 0.0f;  // NaN stays NaN
    if (p.relu && y <= 0.0f) y = 0.0f;
    return {x, y};
  }

  // kChunk maps at a time: what meets them is under way together.
  __device__ __forceinline__ void store(const float (&sum)[T::kMaps / 2]) const {
    float* target = to.out + offset;
    const float* mask = p.masked ? to.mask + offset : nullptr;
#pragma unroll
    for (int begin = 0; begin < T::kMaps; begin += T::kChunk) {
      float2 met[T::kChunk / 4];  // mask, or bias
#pragma unroll
      for (int i = 0; i < T::kChunk / 4; ++i) {
        const int m = begin + i / 2 * 8 + i % 2;
        met[i] = float2{0.0f, 0.0f};
        if constexpr (T::kForward) {
          if (to.bias && map + m < p.out_maps) met[i].x = to.bias[first + m];
        } else if (p.masked) {
          if (map + m < p.out_maps) met[i] = load2(mask + i % 2 * p.map_stride);
          if (i % 2) mask += 8 * p.map_stride;
        }
      }
#pragma unroll
      for (int i = 0; i < T::kChunk / 4; ++i) {
        const int m = begin + i / 2 * 8 + i % 2;
        const float x = sum[m / 8 * 4 + m % 8], y = sum[m / 8 * 4 + m % 8 + 2];
        float2 v{x, y};
        if constexpr (T::kForward)
          v = finished(x, y, met[i].x);
        else if (p.masked)
          v = float2{met[i].x > 0.0f ? x : 0.0f, met[i].y > 0.0f ? y : 0.0f};
        if (map + m < p.out_maps) store2(target + i % 2 * p.map_stride, v);
        if (i % 2) target += 8 * p.map_stride;
      }
    }
  }
};

// A tile of which this warpgroup has kCount pixels, from `column` on. With none it lets the stages pass.
template <class T, int kCount>
__device__ __forceinline__ void consume_tile(const MapsProblem& p,
                                             const MapsPlace<T>& place,
                                             int index,
                                             int column,
                                             const MapsOutputTf32& to,
                                             PreparedRing& ring) {
  constexpr int kSome = kCount > 0 ? kCount : 1;
  const int stages = stages_of(place);
  float sum[kSome][T::kMaps / 2];
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
#pragma unroll
    for (int i = 0; i < T::kMaps / 2; ++i) sum[j][i] = 0.0f;
    hold(sum[j]);
    if constexpr (!T::kForward) {
      if (p.masked) MapsPixel<T>(p, to, place, column + j).prefetch_mask();
    }
  }
  const int strip =
      MapsThread().lane / 32 * T::kHalfBytes + (column - place.column) * T::kPixelBytes;
  using Fragments = MapsFragments<T, kSome>;
  Fragments fragments[2];  // one is loaded while the other is multiplied
  for (int step = 0; step < stages; ++step) {
    const unsigned char* stage = ring.await_ready();
    const uint64_t weights =
        operand(stage + 2 * T::kHalfBytes, kAtom, 8 * T::kRowBytes, Swizzle::bytes64);
#pragma unroll
    for (int i = 0; i < T::kSteps * Fragments::kGroups; ++i) {
      const int eight = i / Fragments::kGroups, group = i % Fragments::kGroups;
      wgmma_wait<1>();                          // the products of these fragments before are done,
      if (i == 1 && step > 0) ring.release(1);  // and now all of the stage before
      if constexpr (kCount > 0) {
        fragments[i % 2].load(reinterpret_cast<const float*>(stage + strip), eight, group);
        fragments[i % 2].multiply(sum, advance(weights, eight * kTermsTf32 * 4), group);
      }
    }
    ring.next();
  }
  wgmma_wait<0>();
#pragma unroll
  for (int j = 0; j < kCount; ++j) hold(sum[j]);
  if (stages > 0) ring.release(1);
  // Computed again: meanwhile its registers were the products'.
  const MapsPlace<T> end(p, warp_uniform(index));
#pragma unroll
  for (int j = 0; j < kCount; ++j) MapsPixel<T>(p, to, end, column + j).store(sum[j]);
}

template <class T>
__device__ __forceinline__ void consume(const MapsProblem& p,
                                        const MapsOutputTf32& to,
                                        PreparedRing ring) {
  for_tiles<1>(p, [&](int index) {
    const MapsPlace<T> place(p, index);
    const int warpgroup =
        warp_uniform(int(threadIdx.x) / kWarpgroup);  // no register is left for it
    const int width = place.column_end - place.column;
    const int each = width / T::kConsumers, more = width % T::kConsumers;
    const int column = place.column + warpgroup * each + min(warpgroup, more);
    switch (each + (warpgroup < more)) {
      case 4:
        if constexpr (T::kPixelsEach >= 4) consume_tile<T, 4>(p, place, index, column, to, ring);
        break;
      case 3:
        if constexpr (T::kPixelsEach >= 3) consume_tile<T, 3>(p, place, index, column, to, ring);
        break;
      case 2:
        if constexpr (T::kPixelsEach >= 2) consume_tile<T, 2>(p, place, index, column, to, ring);
        break;
      case 1:
        consume_tile<T, 1>(p, place, index, column, to, ring);
        break;
      default:
        consume_tile<T, 0>(p, place, index, column, to, ring);
        break;
    }
  });
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    wgmma_maps_tf32_kernel(const __grid_constant__ TensorMap in,
                           const __grid_constant__ TensorMap weight,
                           const __grid_constant__ MapsProblem p,
                           const __grid_constant__ MapsOutputTf32 to) {
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
      prefetch(in);
      prefetch(weight);
      produce<T>(p, in, weight, ring);
    }
  } else {
    become_prepared_consumer<T::kConsumers, T::kOfPreparer>();
    consume<T>(p, to, ring);
  }
}

// ---- host

template <class T>
void launch_maps_tf32(const char* op,
                      const ConvShape& s,
                      const Activation& in,
                      const Activation& out,
                      const void* weight,
                      MapsOutputTf32 to,
                      bool relu,
                      Stream stream) {
  MapsProblem p{};
  p.in_maps = int(in.maps / s.groups), p.in_rows = int(in.rows), p.in_columns = int(in.columns);
  p.out_maps = int(out.maps / s.groups);
  p.out_rows = int(out.rows), p.out_columns = int(out.columns);
  p.R = int(s.R), p.S = int(s.S), p.stride = 1;
  p.pad_top = int(T::kForward ? s.pad_top : s.R - 1 - s.pad_top);
  p.pad_left = int(T::kForward ? s.pad_left : s.S - 1 - s.pad_left);
  p.groups = int(s.groups), p.blocks = int(in.blocks);
  p.parts = 1;
  p.chunks_per_part = int(ceil_div(p.in_maps, T::kDepth));
  p.block_stride = out.block_stride / 4, p.map_stride = out.map_stride / 4;
  p.row_stride = out.row_stride / 4, p.column_stride = out.column_stride / 4;
  p.relu = relu, p.masked = to.mask != nullptr;
  p.ring = T::ring();
  cut_output(op, p, T::kPixels, T::kMaps);
  const int64_t K = s.K / s.groups, row = K * 4, channels = s.C, taps = s.R * s.S;
  const TensorMap weights =
      T::kForward ? tensor_map("weight", Element::float32, weight,
                               {T::kBox, channels, K / T::kBox, taps, 1},
                               {taps * row, T::kBox * 4, row, channels * taps * row},
                               {T::kBox, T::kDepth, T::kMaps / T::kBox, T::kTaps, 1}, Swizzle::none)
                  : tensor_map("weight", Element::float32, weight, {K, channels, taps, 1, 1},
                               {taps * row, row, channels * taps * row, channels * taps * row},
                               {T::kDepth, T::kMaps, T::kTaps, 1, 1}, Swizzle::bytes64);
  const Dim3 grid(blocks_for(p, 1));
  launch(wgmma_maps_tf32_kernel<T>, grid, Dim3(T::kThreads), std::size_t(p.ring.bytes()), stream,
         load_map_tf32("input", in, 32, T::kDepth, T::kStrip, Swizzle::bytes128), weights, p, to);
}

}  // namespace convnet
