// Forward and data-gradient products on Hopper: TMA fills a ring of stages, wgmma multiplies from it.
//
// What       out[n,m,p,q] = sum over rows r and columns s of taps and input maps c of
//            weight(m, c, r, s) in[n,c,p*stride-pad+r,q*stride-pad+s]; then bias and ReLU where asked.
//            Forward: in = x, m = filter. Backward data (stride 1): in = dy, m = channel, c = filter,
//            with flipped taps and pad = R - 1 - pad, and 0 where a mask, if there is one, is not
//            positive. A linear layer is an image of one row whose columns are its blocks of 64
//            images, under a filter of 1 x 1.
// GEMM       GEMM-M = 64 image lanes of one pixel, one wgmma row block per pixel; GEMM-N = kMaps maps;
//            reduction over (r, chunk of kDepth input maps, s, 16 maps), in this order whatever the
//            tile: sums depend on nothing else. Every pixel being a product of its own, a tap that
//            lies outside the image for a pixel is not multiplied at all, rows of taps outside are
//            not even loaded, and tiles have no ragged edge.
// Tile       up to kPixels neighbouring pixels of a row, 64 images, kMaps maps of a group. The
//            pixels are dealt to the two consumer warpgroups in turn.
// Stage      what one filter row and one chunk of input maps need:
//              strip    [(kPixels - 1) * stride + S pixels][kDepth maps][64 lanes], loaded once and
//                       used by all S taps: a tap is the same strip read from another pixel on
//              weights  forward [kMaps / 64][S][kDepth][64 maps]; backward [S][kMaps][kDepth]
//            Both arrive in the 128-byte swizzle (backward weights in the one of their kDepth * 2
//            bytes), every pixel and tap at a multiple of 1024 (or the pattern's) bytes.
//            A mask comes behind a tile's last stage in stages of its own, each one pixel of
//            either consumer warpgroup, [kMaps][64 lanes] as the epilogue writes it: it has arrived
//            when the products are done.
// Operands   A = strip, lanes contiguous: M-major. B = weights: forward N-major, backward K-major. Tiles
//            of fewer than 64 maps take A through registers under filters of five columns: from shared
//            memory it would hold up the product, and a pixel serves several taps.
// Epilogue   sums + bias, ReLU, to bfloat16; stmatrix.trans turns [lane][map] fragments into
//            [map][lanes] rows in shared memory, a tensor store writes rows of 128 bytes, clipped
//            to the maps of the group. ldmatrix.trans does the reverse with a mask. With several
//            parts: float32 partial sums instead, straight to memory in sectors of 32 bytes.
// Schedule   one block per multiprocessor takes a tile of every round of all blocks: the wide ones
//            first, of either kind rows from the middle outwards, those with fewer taps last, and
//            rounds to and fro (for_tiles), so that blocks get about as much to multiply. The producer
//            runs ahead into the next tile while the consumers still store.
// Clusters   of two blocks where tiles come in pairs that share an operand: weights, in two blocks of
//            images with the same pixels and maps; or the strip, in a linear layer, under neighbouring
//            maps. Half of the shared boxes come from the other block, and L2 reads them once. A
//            pair has the same rows, chunks and masks: the same fillings in the same order.
#pragma once
#include "epilogue.cuh"
#include "variants.cuh"
#include "wgmma_ring.cuh"
#include "wgmma_tensors.cuh"

namespace convnet {

struct MapsProblem {
  int in_maps, in_rows, in_columns;     // of a group
  int out_maps, out_rows, out_columns;  // of a group
  int R, S, stride, pad_top, pad_left;
  int groups, blocks;
  int column_tiles, map_tiles;
  int wide_columns, width;        // so many column tiles are a pixel wider than the others' `width`
  int all, wide, rounds;          // tiles, the wide ones first, and how many each block gets
  int strip_bytes, weight_bytes;  // of a stage
  int parts, chunks_per_part;     // of kDepth input maps
  // Elements of `out` from a part, block, map, row and column to the next.
  int64_t part_stride, block_stride, map_stride, row_stride, column_stride;
  bool relu, masked;
  RingShape ring;
};

// What two neighbouring tiles have in common, whose blocks then form a cluster.
struct SharedNothing {
  static constexpr int kCluster = 1;
  static constexpr bool kWeights = false, kStrip = false;
};
struct SharedWeights {
  static constexpr int kCluster = 2;
  static constexpr bool kWeights = true, kStrip = false;
};
struct SharedStrip {
  static constexpr int kCluster = 2;
  static constexpr bool kWeights = false, kStrip = true;
};

template <int kMapsPerTile, int kPixelsPerTile, int kDepthPerStage, bool kForwardPass>
struct MapsTile {
  static constexpr int kMaps = kMapsPerTile, kPixels = kPixelsPerTile, kDepth = kDepthPerStage;
  static constexpr bool kForward = kForwardPass;
  static constexpr int kConsumers = 2, kOfProducer = 40;  // registers
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroup;
  static constexpr int kPixelsEach = (kPixels + kConsumers - 1) / kConsumers;  // at most
  static constexpr int kPixelBytes = kDepth * kSpan;
  static constexpr int kSpans = (kMaps + 63) / 64;  // forward: spans of 64 filters
  static constexpr int kTapBytes = kForward ? kDepth * kSpan : kMaps * kDepth * 2;
  static constexpr Swizzle kWeightSwizzle = kForward || kDepth == 64 ? Swizzle::bytes128
                                            : kDepth == 32           ? Swizzle::bytes64
                                                                     : Swizzle::bytes32;
  // Maps that are rounded at a time.
  static constexpr int kChunk = kMaps % 64 == 0 ? 64 : kMaps % 48 == 0 ? 48 : kMaps;
  // Buffers for finished pixels, of each consumer warpgroup: two hide a store behind the next pixel,
  // where they leave enough room for stages.
  static constexpr int kBuffers = kPixelsEach > 1 && kMaps <= 128 ? 2 : 1;
  static constexpr int kBufferBytes = kMaps * kSpan;
  // Of narrow tiles the first operand takes longer to leave shared memory than to be multiplied: it
  // goes through registers, and there serves several taps.
  static constexpr bool kThroughRegisters = !kForward && kMaps < 64 && kPixelsEach > 1;
  static_assert(kChunk % 16 == 0 && kMaps <= 256);
  static_assert(kDepth == 16 || kDepth == 32 || kDepth == 64);

  __host__ __device__ static constexpr int strip_pixels(int stride, int S) {
    return (kPixels - 1) * stride + S;
  }
  __host__ __device__ static constexpr int strip_bytes(int stride, int S) {
    return strip_pixels(stride, S) * kPixelBytes;
  }
  __host__ __device__ static constexpr int weight_bytes(int S) {
    return (kForward ? kSpans : 1) * S * kTapBytes;
  }
  static constexpr int kOutputBytes = kConsumers * kBuffers * kBufferBytes;
  static RingShape ring(int64_t stride, int64_t S) {
    const int64_t strip = ((kPixels - 1) * stride + S) * kPixelBytes;
    const int64_t weights = (kForward ? kSpans : 1) * S * kTapBytes;
    const int64_t masks = kForward ? 0 : kConsumers * kBufferBytes;
    return ring_shape(round_up(std::max(strip + weights, masks), kAtom), kOutputBytes);
  }
  static std::size_t shared_bytes(const RingShape& ring) { return ring.bytes() + kOutputBytes; }
  // Filters so wide that no two stages or no box fit are left to another variant, as are input maps of
  // which a third of the multiplications would be with zeros. Chunks that reach into the next group
  // meet weights of zero there, but should not depend on the values being finite. Rows are limited so
  // that places in them, times the number of tiles, fit 32 bits.
  static bool takes(
      int64_t stride, int64_t S, int64_t in_maps, int64_t groups, int64_t out_columns) {
    return (kPixels - 1) * stride + S <= 256 && ring(stride, S).stages >= 2 &&
           out_columns < 1 << 15 && 3 * in_maps >= 2 * round_up(in_maps, kDepth) &&
           (groups == 1 || in_maps % kDepth == 0);
  }
};

// Where a tile lies, and which of its taps exist.
template <class T>
struct MapsPlace {
  int part, group, map, block, row, column, column_end;
  int r_begin, r_end, chunk_begin, chunk_end;

  __device__ __forceinline__ MapsPlace(const MapsProblem& p, int index) {
    const bool wide = index < p.wide;
    if (!wide) index -= p.wide;
    block = index % p.blocks;
    index /= p.blocks;
    const int columns = wide ? p.wide_columns : p.column_tiles - p.wide_columns;
    const int column_tile = index % columns;
    index /= columns;
    map = index % p.map_tiles * T::kMaps;
    index /= p.map_tiles;
    group = index % p.groups;
    index /= p.groups;
    part = index % p.parts;
    row = row_from_middle(index / p.parts, p.out_rows);
    const int width = p.width + wide;
    column = column_tile * width + (wide ? 0 : p.wide_columns * (width + 1));
    column_end = column + width;
    const int first_row = row * p.stride - p.pad_top;
    r_begin = max(0, -first_row);
    r_end = min(p.R, p.in_rows - first_row);
    chunk_begin = part * p.chunks_per_part;
    chunk_end = min(chunk_begin + p.chunks_per_part, (p.in_maps + T::kDepth - 1) / T::kDepth);
  }
};

// Calls f with the number of every tile that is this block's: one of each round of all blocks. The last
// round, and every second one in front of it, goes backwards: who had the longest tiles of the round
// before gets the shortest, or none. The blocks of a cluster stay neighbours.
template <int kCluster, class Function>
__device__ __forceinline__ void for_tiles(const MapsProblem& p, Function f) {
  for (int round = 0; round < p.rounds; ++round) {
    const int blocks = gridDim.x, block = blockIdx.x;
    const bool backwards = (p.rounds - round) % 2 == 1;
    const int index =
        round * blocks + (backwards ? blocks - kCluster - block + 2 * (block % kCluster) : block);
    if (index < p.all) f(index);
  }
}

template <class T, class Shared>
__device__ __forceinline__ void produce(const MapsProblem& p,
                                        const TensorMap& in,
                                        const TensorMap& weight,
                                        const TensorMap& mask,
                                        ClusterRing<Shared::kCluster> ring) {
  // The number `turn` of the boxes of an operand.
  const auto copy = [&](bool shared, int turn, void* target, const TensorMap& map, int c0, int c1,
                        int c2, int c3, int c4) {
    if (shared)
      ring.copy_shared(turn, target, map, c0, c1, c2, c3, c4);
    else
      tma_load(target, map, ring.full(), c0, c1, c2, c3, c4);
  };
  for_tiles<Shared::kCluster>(p, [&](int index) {
    const MapsPlace<T> place(p, index);
    for (int r = place.r_begin; r < place.r_end; ++r)
      for (int chunk = place.chunk_begin; chunk < place.chunk_end; ++chunk) {
        unsigned char* stage = ring.begin(p.strip_bytes + p.weight_bytes);
        const int c = chunk * T::kDepth;
        copy(Shared::kStrip, chunk, stage, in, 0, place.group * p.in_maps + c,
             place.column * p.stride - p.pad_left, place.row * p.stride - p.pad_top + r,
             place.block);
        unsigned char* weights = stage + p.strip_bytes;
        if constexpr (T::kForward) {
          for (int span = 0; span < T::kSpans; ++span)
            copy(Shared::kWeights, chunk + span, weights + span * p.S * T::kTapBytes, weight,
                 place.map + 64 * span, c, 0, r, place.group);
        } else {
          copy(Shared::kWeights, chunk, weights, weight, c, place.map, 0, p.R - 1 - r, place.group);
        }
        ring.next();
      }
    if constexpr (!T::kForward) {
      for (int column = place.column; p.masked && column < place.column_end;
           column += T::kConsumers) {
        const int pixels = min(T::kConsumers, place.column_end - column);
        unsigned char* stage = ring.begin(pixels * T::kBufferBytes);
        for (int i = 0; i < pixels; ++i)
          tma_load(stage + i * T::kBufferBytes, mask, ring.full(), 0, place.map,
                   place.row * p.out_columns + column + i, place.group, place.block);
        ring.next();
      }
    }
  });
  ring.drain();
}

// One pixel's sums on their way to memory.
template <class T>
struct MapsOutput {
  const MapsProblem& p;
  const float* bias;  // null: none
  float* partial;     // null: to `out`
  const TensorMap& out;
  unsigned char* buffers;  // of this warpgroup
  int barrier;             // its named barrier
  int stored = 0;

  __device__ __forceinline__ void store(const float (&sum)[T::kMaps / 2],
                                        const MapsPlace<T>& place,
                                        int column,
                                        const unsigned char* mask) {
    if (partial)
      store_partial(sum, place, column);
    else
      store_rounded(sum, place, column, mask);
  }

  // Bias and ReLU (of a forward pass), and neighbouring maps in pairs, for the kChunk maps from number
  // `begin` on: all of them before any is stored, so that the loads of the biases are under way
  // together.
  __device__ __forceinline__ void round_pairs(const float (&sum)[T::kMaps / 2],
                                              const MapsPlace<T>& place,
                                              int begin,
                                              uint32_t (&pairs)[T::kChunk / 16][4]) const {
    const int first = place.map + begin + threadIdx.x % 4 * 2, last = p.out_maps - 1;
    const float* b = T::kForward && bias ? bias + place.group * p.out_maps : nullptr;
#pragma unroll
    for (int j = 0; j < T::kChunk / 8; ++j) {
      // of maps that do not exist, and are not stored, any bias will do
      const float b0 = b ? b[min(first + 8 * j, last)] : 0.0f;
      const float b1 = b ? b[min(first + 8 * j + 1, last)] : 0.0f;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* pair = &sum[begin / 2 + 4 * j + 2 * half];
        float v0 = pair[0] + b0, v1 = pair[1] + b1;
        const bool relu = T::kForward && p.relu;
        if (relu && v0 <= 0.0f) v0 = 0.0f;  // NaN stays NaN
        if (relu && v1 <= 0.0f) v1 = 0.0f;
        pairs[j / 2][j % 2 * 2 + half] = pack_bf16(v0, v1);
      }
    }
  }

  __device__ __forceinline__ void store_rounded(const float (&sum)[T::kMaps / 2],
                                                const MapsPlace<T>& place,
                                                int column,
                                                const unsigned char* mask) {
    const int thread = threadIdx.x % kWarpgroup, warp = thread / 32, lane = thread % 32;
    unsigned char* buffer = buffers + stored % T::kBuffers * T::kBufferBytes;
    if (thread == 0) bulk_wait_read<T::kBuffers - 1>();
    named_barrier(barrier, kWarpgroup);  // the buffer's last store has read it
#pragma unroll
    for (int begin = 0; begin < T::kMaps; begin += T::kChunk) {
      uint32_t pairs[T::kChunk / 16][4];
      round_pairs(sum, place, begin, pairs);
#pragma unroll
      for (int j = 0; j < T::kChunk / 16; ++j) {
        // Matrices in the order (lanes 0-7, eight maps), (lanes 8-15, the same maps), and the next
        // eight maps; row = map, 16 bytes = eight lanes, swizzled as the tensor store expects it.
        const int row = begin + 16 * j + lane / 16 * 8 + lane % 8,
                  sixteen = 2 * warp + lane / 8 % 2;
        const int offset = row * kSpan + (sixteen ^ row % 8) * 16;
        if (mask) {
          uint32_t x[1][4];
          const void* const rows[1] = {mask + offset};
          load_matrices_transposed(x, rows);
#pragma unroll
          for (int e = 0; e < 4; ++e) pairs[j][e] = where_positive(pairs[j][e], x[0][e]);
        }
        store_matrices_transposed(buffer + offset, pairs[j]);
      }
    }
    fence_async_proxy();
    named_barrier(barrier, kWarpgroup);  // all rows are written
    if (thread == 0) {
      tma_store(out, buffer, 0, place.map, place.row * p.out_columns + column, place.group,
                place.block);
      bulk_commit();
    }
    ++stored;
  }

  // partial [parts] times the layout of `out`
  __device__ __forceinline__ void store_partial(const float (&sum)[T::kMaps / 2],
                                                const MapsPlace<T>& place,
                                                int column) {
    const int thread = threadIdx.x % kWarpgroup, lane = thread % 32;
    const int first = place.map + lane % 4 * 2;
    float* target = partial + place.part * p.part_stride + place.block * p.block_stride +
                    (int64_t{place.group} * p.out_maps + first) * p.map_stride +
                    place.row * p.row_stride + column * p.column_stride + thread / 32 * 16 +
                    lane / 4;
#pragma unroll
    for (int i = 0; i < T::kMaps / 2; ++i) {
      const int m = i / 4 * 8 + i % 2;
      if (first + m < p.out_maps) target[m * p.map_stride + i / 2 % 2 * 8] = sum[i];
    }
  }
};

// What a consumer warpgroup multiplies of a stage: its pixels lie `step` pixels of the strip apart.
template <class T>
struct MapsOperands {
  uint64_t strip, weights;
  int first, step;
  int S;

  // All products of one tap of pixel number j.
  __device__ __forceinline__ void multiply(float (&sum)[T::kMaps / 2], int j, int s) const {
    const uint64_t a = advance(strip, (first + j * step + s) * T::kPixelBytes);
    const uint64_t b = advance(weights, (T::kForward ? s : S - 1 - s) * T::kTapBytes);
#pragma unroll
    for (int k = 0; k < T::kDepth; k += kTerms)
      wgmma<T::kMaps, true, T::kForward>(sum, advance(a, k * kSpan),
                                         advance(b, T::kForward ? k * kSpan : k * 2));
  }
};

// All kS taps of kCount pixels without a branch. A branch between two wgmmas makes the assembler
// close a group in front of it, and one more, empty, at the end: waiting for all groups but the last
// is then waiting for everything.
template <class T, int kCount, int kS>
__device__ __forceinline__ void multiply_all(float (&sum)[T::kPixelsEach][T::kMaps / 2],
                                             const MapsOperands<T>& operands) {
  wgmma_fence();
#pragma unroll
  for (int j = 0; j < kCount; ++j)
#pragma unroll
    for (int s = 0; s < kS; ++s) operands.multiply(sum[j], j, s);
  wgmma_commit();
}

// The numbers of pixels that most tiles have. False: not multiplied.
template <class T, int kS>
__device__ __forceinline__ bool multiply_whole(float (&sum)[T::kPixelsEach][T::kMaps / 2],
                                               const MapsOperands<T>& operands,
                                               int pixels) {
  if (pixels == T::kPixelsEach) {
    multiply_all<T, T::kPixelsEach, kS>(sum, operands);
    return true;
  }
  if constexpr (T::kPixelsEach > 1) {
    if (pixels == T::kPixelsEach - 1) {
      multiply_all<T, T::kPixelsEach - 1, kS>(sum, operands);
      return true;
    }
  }
  return false;
}

// The taps from s_begin to s_end of each pixel: at the rim of the image, and for filters of any width.
template <class T>
__device__ __forceinline__ void multiply_some(float (&sum)[T::kPixelsEach][T::kMaps / 2],
                                              const MapsOperands<T>& operands,
                                              const int (&s_begin)[T::kPixelsEach],
                                              const int (&s_end)[T::kPixelsEach]) {
#pragma unroll
  for (int j = 0; j < T::kPixelsEach; ++j)
#pragma unroll 1
    for (int s = s_begin[j]; s < s_end[j]; ++s) {
      wgmma_fence();  // in every turn of the loop: the assembler would add it
      operands.multiply(sum[j], j, s);
    }
  wgmma_commit();
}

// All kS taps of kCount pixels at stride 1, pixel by pixel of the strip, from `first` on; taps outside of
// the image are zeros. Without a branch, as above.
template <class T, int kCount, int kS>
__device__ __forceinline__ void multiply_strip(float (&sum)[T::kPixelsEach][T::kMaps / 2],
                                               const unsigned char* first,
                                               uint64_t weights) {
  constexpr int kProducts = T::kDepth / kTerms;
  const int warp = threadIdx.x % kWarpgroup / 32, lane = threadIdx.x % 32;
  // Matrices in the order (lanes 0-7, eight maps), (lanes 8-15, the same maps), and the next eight maps.
  const int map = lane / 16 * 8 + lane % 8, sixteen = (2 * warp + lane / 8 % 2) ^ map % 8;
  const unsigned char* row = first + map * kSpan + sixteen * 16;
  uint32_t fragments[2][kProducts][4];  // one pixel's are loaded while the other's are multiplied
#pragma unroll
  for (int i = 0; i < (kCount - 1) * T::kConsumers + kS; ++i) {
    wgmma_wait<1>();  // the products of these fragments before are done
    auto& a = fragments[i % 2];
    const void* rows[kProducts];
#pragma unroll
    for (int n = 0; n < kProducts; ++n) rows[n] = row + i * T::kPixelBytes + n * kTerms * kSpan;
    load_matrices_transposed(a, rows);
#pragma unroll
    for (int n = 0; n < kProducts; ++n) hold(a[n]);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const int s = i - j * T::kConsumers;
      if (s < 0 || s >= kS) continue;
#pragma unroll
      for (int n = 0; n < kProducts; ++n)
        wgmma<T::kMaps, false>(sum[j], a[n],
                               advance(weights, (kS - 1 - s) * T::kTapBytes + n * kTerms * 2));
    }
    wgmma_commit();
  }
  wgmma_wait<0>();  // the fragments are in use until then
}

template <class T, class Shared>
__device__ __forceinline__ void consume(const MapsProblem& p,
                                        int warpgroup,
                                        MapsOutput<T>& output,
                                        ClusterRing<Shared::kCluster> ring) {
  for_tiles<Shared::kCluster>(p, [&](int index) {
    const MapsPlace<T> place(p, index);
    float sum[T::kPixelsEach][T::kMaps / 2];
    int s_begin[T::kPixelsEach], s_end[T::kPixelsEach];  // taps inside the image
    int whole = 0;  // pixels of this warpgroup, where all their taps are inside; else none
#pragma unroll
    for (int j = 0; j < T::kPixelsEach; ++j) {
      const int column = place.column + j * T::kConsumers + warpgroup;
      const int first = column * p.stride - p.pad_left;
      s_begin[j] = max(0, -first);
      s_end[j] = column < place.column_end ? min(p.S, p.in_columns - first) : 0;
      if (column < place.column_end)
        whole = s_begin[j] == 0 && s_end[j] == p.S && whole == j ? j + 1 : -1;
#pragma unroll
      for (int i = 0; i < T::kMaps / 2; ++i) sum[j][i] = 0.0f;
      hold(sum[j]);
    }

    const int steps =
        max(0, place.r_end - place.r_begin) * max(0, place.chunk_end - place.chunk_begin);
    for (int step = 0; step < steps; ++step) {
      unsigned char* stage = ring.await();
      const uint64_t strip = operand(stage, kAtom, kAtom, Swizzle::bytes128);
      const uint64_t weights =
          T::kForward ? operand(stage + p.strip_bytes, p.S * T::kTapBytes, kAtom, T::kWeightSwizzle)
                      : operand(stage + p.strip_bytes, kAtom, 8 * T::kDepth * 2, T::kWeightSwizzle);
      const MapsOperands<T> operands{strip, weights, warpgroup * p.stride, T::kConsumers * p.stride,
                                     p.S};
      bool done = false;
      if constexpr (T::kThroughRegisters) {
        const int left = place.column_end - place.column - warpgroup;
        const int count = (left + T::kConsumers - 1) / T::kConsumers;
        const unsigned char* first = stage + warpgroup * T::kPixelBytes;
        const auto multiply = [&](auto pixels) {
          if (count != pixels.value || p.S != 5 || p.stride != 1) return;
          multiply_strip<T, pixels.value, 5>(sum, first, weights);
          done = true;
        };
        multiply(std::integral_constant<int, T::kPixelsEach>{});
        multiply(std::integral_constant<int, T::kPixelsEach - 1>{});
      }
      // Wide tiles have registers for the most frequent filters alone.
      if constexpr (T::kMaps <= 128) {
        if (p.S == 1) done = multiply_whole<T, 1>(sum, operands, whole);
        if (!done && p.S == 5 && T::kDepth < 64) done = multiply_whole<T, 5>(sum, operands, whole);
      }
      if (p.S == 3 && T::kDepth < 64) done = multiply_whole<T, 3>(sum, operands, whole);
      if (!done) multiply_some(sum, operands, s_begin, s_end);
      ring.next();
      if (step > 0) {
        wgmma_wait<1>();  // what read the stage before this one is done
        ring.release(2);
      }
    }
    wgmma_wait<0>();
#pragma unroll
    for (int j = 0; j < T::kPixelsEach; ++j) hold(sum[j]);
    if (steps > 0) ring.release(1);

#pragma unroll
    for (int j = 0; j < T::kPixelsEach; ++j) {
      const int column = place.column + j * T::kConsumers + warpgroup;
      const bool masked = !T::kForward && p.masked && column - warpgroup < place.column_end;
      const unsigned char* mask = masked ? ring.await() + warpgroup * T::kBufferBytes : nullptr;
      if (column < place.column_end) output.store(sum[j], place, column, mask);
      if (masked) {
        ring.next();
        ring.release(1);
      }
    }
  });
  if (threadIdx.x % kWarpgroup == 0) bulk_wait<0>();
}

template <class T, class Shared>
__global__ void __launch_bounds__(T::kThreads, 1)
    wgmma_maps_kernel(const __grid_constant__ TensorMap in,
                      const __grid_constant__ TensorMap weight,
                      const __grid_constant__ TensorMap out,
                      const __grid_constant__ TensorMap mask,
                      const __grid_constant__ MapsProblem p,
                      const float* bias,
                      float* partial) {
  RingBarriers& barriers = shared_storage<RingBarriers>();
  ClusterRing<Shared::kCluster> ring(barriers, p.ring);
  if (threadIdx.x == 0) ring.initialise(T::kConsumers * kWarpgroup / 32);
  begin_kernel();
  ring.meet();

  const int warpgroup = warp_uniform(int(threadIdx.x) / kWarpgroup);
  if (warpgroup == T::kConsumers) {
    become_producer<T::kConsumers, T::kOfProducer>();
    if (threadIdx.x / 32 % 4 == 0 && elect_one()) {
      prefetch(in);
      prefetch(weight);
      produce<T, Shared>(p, in, weight, mask, ring);
    }
  } else {
    become_consumer<T::kConsumers, T::kOfProducer>();
    unsigned char* buffers = reinterpret_cast<unsigned char*>(&barriers) + p.ring.bytes() +
                             warpgroup * T::kBuffers * T::kBufferBytes;
    MapsOutput<T> output{p, bias, partial, out, buffers, 1 + warpgroup};
    consume<T, Shared>(p, warpgroup, output, ring);
  }
}

// ---- host

// Cuts the output into tiles of at most `pixels` of a row, equally wide up to one, and `maps`.
inline void cut_output(const char* op, MapsProblem& p, int pixels, int maps) {
  p.column_tiles = int(ceil_div(p.out_columns, pixels));
  p.width = p.out_columns / p.column_tiles, p.wide_columns = p.out_columns % p.column_tiles;
  p.map_tiles = int(ceil_div(p.out_maps, maps));
  const int64_t of_a_column = int64_t{p.out_rows} * p.parts * p.groups * p.map_tiles * p.blocks;
  const int64_t all = of_a_column * p.column_tiles;
  require(all < int64_t{1} << 30, op, ": the output has too many tiles for one launch, got ", all,
          "; run the batch in parts");
  p.all = int(all), p.wide = int(of_a_column * p.wide_columns);
}

// Blocks of a launch, a multiple of `cluster` where the tiles are.
inline unsigned blocks_for(MapsProblem& p, int cluster) {
  const int blocks = std::min(p.all, multiprocessors() / cluster * cluster);
  p.rounds = int(ceil_div(p.all, blocks));
  return unsigned(blocks);
}

// What a launch over maps needs to know; the tile adds the rest.
struct MapsCall {
  Activation in, out;
  const void* weight;
  const float* bias;  // or null; for a forward tile, as is relu
  const void* mask;   // like `out`, or null; for a backward tile
  float* partial;     // [parts] times `out` in float32; null where there is one part
  int64_t R, S, stride, pad_top, pad_left, groups;
  int64_t parts;  // an even_parts of the chunks of input maps
  bool relu;
};

// How long a launch takes: rounds of the 132 multiprocessors of a large GPU, times the pixels of a tile
// on average.
inline double rounds_of_tiles(const Activation& out, int64_t groups, int maps, int64_t pixels) {
  const int64_t row = ceil_div(out.columns, pixels);
  const int64_t tiles = out.blocks * out.rows * row * groups * ceil_div(out.maps / groups, maps);
  return static_cast<double>(ceil_div(tiles, 132)) * out.columns / row;
}

// Shared: what tiles in pairs have in common, where they come in pairs.
template <class T, class Shared>
void launch_maps(const char* op, const MapsCall& call, Stream stream) {
  const Activation &in = call.in, &out = call.out;
  MapsProblem p{};
  p.in_maps = int(in.maps / call.groups), p.in_rows = int(in.rows), p.in_columns = int(in.columns);
  p.out_maps = int(out.maps / call.groups);
  p.out_rows = int(out.rows), p.out_columns = int(out.columns);
  p.R = int(call.R), p.S = int(call.S), p.stride = int(call.stride);
  p.pad_top = int(call.pad_top), p.pad_left = int(call.pad_left);
  p.groups = int(call.groups), p.blocks = int(in.blocks);
  p.parts = int(call.parts);
  p.chunks_per_part = int(ceil_div(ceil_div(p.in_maps, T::kDepth), call.parts));
  p.block_stride = out.block_stride / 2, p.map_stride = out.map_stride / 2;
  p.row_stride = out.row_stride / 2, p.column_stride = out.column_stride / 2;
  p.part_stride = out.maps * out.columns * out.rows * out.blocks * 64;
  p.relu = call.relu, p.masked = call.mask != nullptr;
  p.strip_bytes = T::strip_bytes(p.stride, p.S), p.weight_bytes = T::weight_bytes(p.S);
  p.ring = T::ring(call.stride, call.S);
  cut_output(op, p, T::kPixels, T::kMaps);
  require(out.columns * (p.column_tiles + 1) < int64_t{1} << 31, op,
          ": a row must have fewer than 2^15 columns, got ", out.columns);
  Activation mask = out;  // without one, a copy that nobody reads
  if (call.mask) mask.data = call.mask;
  const int filters = T::kForward ? p.out_maps : p.in_maps;
  const int channels = T::kForward ? p.in_maps : p.out_maps;
  // Neighbouring tiles differ in their block of images first, then in their pixels, then in their maps.
  const int alike = Shared::kWeights ? p.blocks : p.blocks * p.column_tiles == 1 ? p.map_tiles : 1;
  const bool pairs = alike % Shared::kCluster == 0;
  const unsigned cluster = pairs ? Shared::kCluster : 1;
  const unsigned blocks = blocks_for(p, int(cluster));
  launch(pairs ? wgmma_maps_kernel<T, Shared> : wgmma_maps_kernel<T, SharedNothing>,
         Grid(Dim3(blocks), cluster), Dim3(T::kThreads), T::shared_bytes(p.ring), stream,
         load_map("input", in, T::kDepth, T::strip_pixels(p.stride, p.S)),
         weight_map(call.weight, call.groups, channels, call.R, call.S, filters,
                    T::kForward ? 64 : T::kDepth, T::kForward ? T::kDepth : T::kMaps,
                    T::kWeightSwizzle),
         store_map("output", out, call.groups, T::kMaps),
         store_map("mask", mask, call.groups, T::kMaps), p, call.bias, call.partial);
}

}  // namespace convnet
