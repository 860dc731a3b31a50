// Filter-gradient products on Hopper: TMA fills a ring of stages, wgmma multiplies from it.
//
// What       dweight[c][r][s][k] = sum over image blocks, output rows p, columns q and lanes of
//            dy[n,k,p,q] x[n,c,p*stride-pad+r,q*stride-pad+s]. A linear layer is an image of one row
//            whose columns are its blocks of 64 images, under a filter of 1 x 1.
// GEMM       GEMM-M = kFilters filters, 64 per consumer warpgroup; GEMM-N = kTaps taps of one filter
//            row x kChannels channels; reduction over (block, p, q, lane) in chunks of up to
//            p.chunk_pixels neighbouring pixels of an output row, of the rows that have an input row.
// Cut        The chunks of all tiles, one tile behind the other, are one line, cut into p.runs equal
//            runs, about as many as a large GPU has multiprocessors: each is the work of a block, so
//            that all have the same, and a tile has no more parts than it has to. Where runs are few
//            for a tile anyway, every tile is cut by itself, so that blocks that read the same rows of
//            dy and x do it at the same time. The cut depends on the shape alone.
// Stage      what one chunk needs for one half of its lanes:
//              x   [(pixels - 1) * stride + kTaps pixels][kChannels][32 lanes]
//              dy  [pixels][kFilters][32 lanes]
//            in the 64-byte swizzle; halves, so that three stages or more fit beside each other, and a
//            copy has the time of the others to arrive. Channels and filters beyond the last read another
//            group's or zeros, into sums that nobody stores.
// Operands   both lie with the reduction, over the lanes, contiguous: K-major. The kTaps x kChannels
//            columns of a pixel's product are that many neighbouring rows of x: the taps of a filter
//            row are one window of the strip.
// Bias       dbias[k] = sum over n, p, q of dy[n,k,p,q], where asked for: tiles of the first channels and
//            taps, under one filter row, read dy from their stages while they multiply, rows whose
//            input row lies outside the image included. Two threads of a filter take 16 of a stage's
//            lanes each, pixel after pixel, and are added at the end of the part.
// Epilogue   float32 sums straight to memory in sectors of 32 bytes (eight neighbouring filters);
//            parts, and those of dbias behind them, are added in ascending order by tile/sums.cuh.
// Update     of a linear layer: sums are gradients of weights that are updated in place. Behind the
//            last chunk of a tile, the producer fills stages with slices of its weights and
//            velocities:
//              w, v [filters / 32][32 channels][32 filters], float32
//            in the 128-byte swizzle, so that up to 200 KB of them are on their way to a
//            multiprocessor at any time, also while it multiplies the next tile. Consumers transpose
//            their sums into quads of neighbouring filters and store 16 bytes at a time, whole
//            sectors of 16 filters.
#pragma once
#include "update.cuh"
#include "variants.cuh"
#include "wgmma_ring.cuh"
#include "wgmma_tensors.cuh"

namespace convnet {

struct FilterProblem {
  int C, H, W, K, R, S, P, Q;  // C and K of a group
  int stride, pad_top, pad_left;
  int groups, blocks;
  int filter_tiles, channel_tiles, tap_tiles, row_tiles;
  int column_chunks, chunk_pixels;  // of an output row
  int dy_bytes, x_bytes;            // of a stage
  int pieces;                       // of a tile that is cut by itself; 0: tiles are cut by chunks
  int line;             // units, pieces or chunks, of the tiles that differ in rows alone
  int length;           // units of the whole line
  int run, runs;        // units of one, and how many there are
  int parts;            // sums of a tile, at most
  int64_t part_stride;  // floats
  int bias_row;         // tile of rows that sums dy
  bool all_rows;        // tiles have several filter rows, and read all rows of dy
  RingShape ring;

  // Tiles of the same filter rows.
  __host__ __device__ int tiles() const {
    return groups * filter_tiles * channel_tiles * tap_tiles;
  }
  // The first output row that has an input row under filter row r, and the one behind the last: all of
  // them where dy is summed, and one where there is none, whose products are zeros.
  __host__ __device__ int row_begin(int r) const {
    const int begin = r < pad_top ? (pad_top - r + stride - 1) / stride : 0;
    return sees_all(r) || begin >= row_limit(r) ? 0 : begin;
  }
  __host__ __device__ int row_end(int r) const {
    return sees_all(r) ? P : row_limit(r) > row_begin(r) ? row_limit(r) : row_begin(r) + 1;
  }
  __host__ __device__ bool sees_all(int r) const { return all_rows || r == bias_row; }
  __host__ __device__ int chunks(int r) const {
    return blocks * (row_end(r) - row_begin(r)) * column_chunks;
  }
  __host__ __device__ int units(int r) const { return pieces ? pieces : chunks(r); }

 private:
  __host__ __device__ int row_limit(int r) const {
    const int limit = H + pad_top - r <= 0 ? 0 : (H + pad_top - r + stride - 1) / stride;
    return limit < P ? limit : P;
  }
};

template <class T>
struct FilterPart;

template <int kCount>
__device__ __forceinline__ void clear_sums(float (&sum)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] = 0.0f;
  hold(sum);
}

template <int kConsumerCount, int kTapsPerTile, int kChannelsPerTile>
struct FilterTile {
  static constexpr Precision kPrecision = Precision::bf16;
  static constexpr int kConsumers = kConsumerCount;
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroup;
  static constexpr int kFilters = kConsumers * 64;
  static constexpr int kTapRows = 1, kTaps = kTapsPerTile, kChannels = kChannelsPerTile;
  static constexpr int kColumns = kTaps * kChannels;
  static constexpr int kMostPixels = 5;           // of a chunk
  static constexpr int kLanes = 32, kHalves = 2;  // of a stage; stages of a chunk
  static constexpr int kRow = kLanes * 2;         // bytes: a span of the 64-byte swizzle
  static constexpr int kDyBytes = kFilters * kRow, kXBytes = kChannels * kRow;  // of a pixel
  static constexpr int kSlice = 32;                    // channels whose weights a stage holds
  static constexpr int kBox = 32;                      // filters: a span of the 128-byte swizzle
  static constexpr int kBoxBytes = kSlice * kBox * 4;  // one of the boxes of a slice
  static constexpr int kSliceBytes = kFilters * kSlice * 4;  // of weights or velocities
  static_assert(kXBytes % kAtom == 0 && kColumns <= 256);

  using Sums = float[kColumns / 2];

  static TensorMap x_map(const Activation& a, int64_t x_pixels) {
    return load_map("x", a, kChannels, x_pixels, kLanes);
  }
  static __device__ __forceinline__ void load_x(void* target,
                                                const TensorMap& x,
                                                Barrier& full,
                                                int lane,
                                                int channel,
                                                int column,
                                                int row,
                                                int block) {
    tma_load(target, x, full, lane, channel, column, row, block);
  }

  // Whether this warpgroup's filters exist.
  template <class Part>
  static __device__ __forceinline__ bool works(const FilterProblem& p,
                                               const Part& part,
                                               int warpgroup) {
    return part.filter + 64 * warpgroup < p.K;
  }

  static __device__ __forceinline__ void clear(Sums& sum) { clear_sums(sum); }
  static __device__ __forceinline__ void hold(Sums& sum) { convnet::hold(sum); }

  // The products of kPixels pixels, without a branch between them (see multiply_all in wgmma_maps.cuh).
  template <int kPixels>
  static __device__ __forceinline__ void multiply(
      Sums& sum, const unsigned char* dy, const unsigned char* x, int x_step, int warpgroup) {
    const uint64_t a = operand(dy + warpgroup * 64 * kRow, kAtom, 8 * kRow, Swizzle::bytes64);
    const uint64_t b = operand(x, kAtom, 8 * kRow, Swizzle::bytes64);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kPixels; ++i)
#pragma unroll
      for (int n = 0; n < kLanes; n += kTerms)
        wgmma<kColumns, false, false>(sum, advance(a, i * kDyBytes + n * 2),
                                      advance(b, i * x_step + n * 2));
    wgmma_commit();
  }

  template <class Part>
  static __device__ __forceinline__ void store(
      const FilterProblem& p, const Part& part, const Sums& sum, int warpgroup, float* dweight) {
    const bool whole = part.s + kTaps <= p.S && part.channel + kChannels <= p.C &&
                       part.filter + 64 * (warpgroup + 1) <= p.K;
    if (whole)
      store<true>(p, part, sum, warpgroup, dweight);
    else
      store<false>(p, part, sum, warpgroup, dweight);
  }

 private:
  // kWhole: all taps, channels and filters of the tile exist.
  template <bool kWhole, class Part>
  static __device__ __forceinline__ void store(
      const FilterProblem& p, const Part& part, const Sums& sum, int warpgroup, float* dweight) {
    const int thread = threadIdx.x % kWarpgroup;
    const int channel = part.channel + thread % 4 * 2;
    const int filter = part.filter + 64 * warpgroup + thread / 32 * 16 + thread % 32 / 4;
    const int next_channel = p.R * p.S * p.K;
    float* first = dweight + (int64_t{part.group} * p.C + channel) * next_channel +
                   (part.r * p.S + part.s) * p.K + filter;
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) {
      const int s = i / 4 * 8 / kChannels, c = i / 4 * 8 % kChannels + i % 2, k = i / 2 % 2 * 8;
      if (kWhole || (part.s + s < p.S && channel + c < p.C && filter + k < p.K))
        first[int64_t{c} * next_channel + s * p.K + k] = sum[i];
    }
  }
};

// Pixels of x that a chunk of a row needs.
template <class T>
int64_t x_pixels_of(int64_t stride, int64_t pixels) {
  return (pixels - 1) * stride + T::kTaps;
}

template <class T>
RingShape filter_ring(int64_t stride, int64_t pixels) {
  return ring_shape(
      round_up(pixels * T::kDyBytes + x_pixels_of<T>(stride, pixels) * T::kXBytes, kAtom), 0);
}

// Pixels of a chunk: what loads a row in the fewest bytes, x being loaded for more pixels than are
// multiplied, while three stages fit; or else two stages of one pixel; 0 where not even these fit.
template <class T>
int chunk_pixels_of(int64_t stride, int64_t columns) {
  if (filter_ring<T>(stride, 1).stages < 2) return 0;
  int best = 1;
  const auto row_bytes = [&](int pixels) {
    return ceil_div(columns, pixels) * filter_ring<T>(stride, pixels).stage_bytes;
  };
  for (int pixels = 2; pixels <= std::min<int64_t>(columns, T::kMostPixels); ++pixels) {
    if (filter_ring<T>(stride, pixels).stages < 3 || x_pixels_of<T>(stride, pixels) > 256) break;
    if (row_bytes(pixels) <= row_bytes(best)) best = pixels;
  }
  return best;
}

// The part of a tile that begins at a unit of the line, as far as its run goes.
template <class T>
struct FilterPart {
  int group, filter, channel, r, s;
  int row_tile;       // of filter rows
  int unit, run_end;  // where it begins, and its run ends
  int first_chunk, last_chunk;
  int number;  // of the tile's parts
  int end;     // of its units
  bool last;   // of the tile

  __device__ __forceinline__ FilterPart(const FilterProblem& p, int unit, int run_end)
      : unit(unit), run_end(run_end) {
    int tile = unit / p.line, begin = tile * p.line;
    for (row_tile = 0; begin + p.units(row_tile) <= unit; ++row_tile) begin += p.units(row_tile);
    const int units = p.units(row_tile), tile_end = begin + units;
    end = min(run_end, tile_end), last = end == tile_end;
    number = unit / p.run - begin / p.run;
    const int chunks = p.chunks(row_tile);
    first_chunk = p.pieces ? (unit - begin) * chunks / units : unit - begin;
    last_chunk = p.pieces ? (end - begin) * chunks / units : end - begin;

    r = row_tile * T::kTapRows;
    s = tile % p.tap_tiles * T::kTaps;
    tile /= p.tap_tiles;
    channel = tile % p.channel_tiles * T::kChannels;
    tile /= p.channel_tiles;
    filter = tile % p.filter_tiles * T::kFilters;
    group = tile / p.filter_tiles;
  }
  // Whether the tile is one of those that see every value of dy once.
  __device__ __forceinline__ bool sees_all(const FilterProblem& p) const {
    return row_tile == p.bias_row && s == 0 && channel == 0;
  }
};

// Calls f with every part that is this block's.
template <class T, class Function>
__device__ __forceinline__ void for_parts(const FilterProblem& p, Function f) {
  for (int run = blockIdx.x; run < p.runs; run += gridDim.x) {
    const int end = min((run + 1) * p.run, p.length);
    for (int unit = run * p.run; unit < end;) {
      const FilterPart<T> part(p, unit, end);
      f(part);
      unit = part.end;
    }
  }
}

// Walks the chunks of a part, without divisions on the way.
struct FilterWalk {
  int block, row, chunk;
  int left;

  template <class T>
  __device__ __forceinline__ FilterWalk(const FilterProblem& p, const FilterPart<T>& part)
      : left(part.last_chunk - part.first_chunk) {
    row_begin_ = p.row_begin(part.row_tile), row_end_ = p.row_end(part.row_tile);
    chunk = part.first_chunk % p.column_chunks;
    const int rows = part.first_chunk / p.column_chunks, count = row_end_ - row_begin_;
    row = row_begin_ + rows % count;
    block = rows / count;
  }
  // Chunks of a row are equally wide, up to one pixel.
  __device__ __forceinline__ int column(const FilterProblem& p) const {
    return chunk * p.Q / p.column_chunks;
  }
  __device__ __forceinline__ int pixels(const FilterProblem& p) const {
    return (chunk + 1) * p.Q / p.column_chunks - column(p);
  }
  __device__ __forceinline__ void next(const FilterProblem& p) {
    --left;
    if (++chunk < p.column_chunks) return;
    chunk = 0;
    if (++row < row_end_) return;
    row = row_begin_;
    ++block;
  }

 private:
  int row_begin_, row_end_;
};

// What becomes of the sums: kernels take one of these.
struct StoreSums {
  static constexpr bool kUpdates = false;
  float* dbias;  // of the first part, or null
  float* dweight;
};

struct UpdateWeights {
  static constexpr bool kUpdates = true;
  float* dbias;                // or null
  TensorMap weight, velocity;  // where `slices`
  WeightUpdate target;
  bool slices;  // rows are whole quads; else values are updated one by one, where they lie
};

// The slices of a tile; consumers take as many.
template <class T>
__device__ __forceinline__ void produce_slices(const FilterProblem& p,
                                               const FilterPart<T>& part,
                                               const UpdateWeights& out,
                                               StageRing& ring) {
  const int last = min(part.channel + T::kChannels, p.C);
  for (int channel = part.channel; channel < last; channel += T::kSlice) {
    unsigned char* stage = ring.begin(2 * T::kSliceBytes);
    for (int box = 0; box < T::kFilters / T::kBox; ++box) {
      const int filter = part.filter + box * T::kBox;
      unsigned char* target = stage + box * T::kBoxBytes;
      tma_load(target, out.weight, ring.full(), filter, channel, 0, 0, 0);
      tma_load(target + T::kSliceBytes, out.velocity, ring.full(), filter, channel, 0, 0, 0);
    }
    ring.next();
  }
}

template <class T, class Output>
__device__ __forceinline__ void produce(const FilterProblem& p,
                                        const TensorMap& dy,
                                        const TensorMap& x,
                                        const Output& out,
                                        StageRing ring) {
  for_parts<T>(p, [&](const FilterPart<T>& part) {
    for (FilterWalk walk(p, part); walk.left > 0; walk.next(p)) {
      const int column = walk.column(p);
      for (int lane = 0; lane < 64; lane += T::kLanes) {
        unsigned char* stage = ring.begin(p.dy_bytes + p.x_bytes);
        T::load_x(stage, x, ring.full(), lane, part.group * p.C + part.channel,
                  column * p.stride - p.pad_left + part.s, walk.row * p.stride - p.pad_top + part.r,
                  walk.block);
        tma_load(stage + p.x_bytes, dy, ring.full(), lane, part.group * p.K + part.filter, column,
                 walk.row, walk.block);
        ring.next();
      }
    }
    if constexpr (Output::kUpdates) {
      if (out.slices) produce_slices<T>(p, part, out, ring);
    }
  });
}

// Four neighbouring lanes of a column of the warp (lane / 4) hold four neighbouring filters of four
// sums each; afterwards lane i of them holds all filters of sum i. All lanes of a warp must call.
__device__ __forceinline__ float4 transposed(const float (&v)[4]) {
  const bool odd = threadIdx.x & 4, high = threadIdx.x & 8;
  const float x = warp_shuffle_xor(odd ? v[0] : v[1], 4);
  const float y = warp_shuffle_xor(odd ? v[2] : v[3], 4);
  const float a0 = odd ? x : v[0], a1 = odd ? v[1] : x;  // of sum 0 or 1, filters 0, 1 or 2, 3
  const float b0 = odd ? y : v[2], b1 = odd ? v[3] : y;  // of sum 2 or 3
  const float p0 = warp_shuffle_xor(high ? a0 : b0, 8);
  const float p1 = warp_shuffle_xor(high ? a1 : b1, 8);
  return high ? float4{p0, p1, b0, b1} : float4{a0, a1, p0, p1};
}

// A tile of a linear layer: its weights come in slices, in the order of the channels.
template <class T>
__device__ __forceinline__ void update_slices(const FilterProblem& p,
                                              const FilterPart<T>& part,
                                              const float (&sum)[T::kColumns / 2],
                                              int warpgroup,
                                              bool works,
                                              const WeightUpdate& target,
                                              const Rates& rates,
                                              StageRing& ring) {
  static_assert(T::kTaps == 1 && T::kChannels % T::kSlice == 0);
  constexpr int kQuads = T::kSlice / 8;
  // Of the four sums that `transposed` takes, this lane gets the one of this channel and filter.
  const int lane = threadIdx.x % 32, which = lane / 4 % 4;
  const int c = lane % 4 * 2 + which % 2;
  const int k = 64 * warpgroup + threadIdx.x % kWarpgroup / 32 * 16 + which / 2 * 8 + lane / 16 * 4;
  const int offset =
      k / T::kBox * T::kBoxBytes + c * (T::kBox * 4) + ((k % T::kBox / 4) ^ c) * 16;  // swizzled
#pragma unroll
  for (int slice = 0; slice < T::kChannels / T::kSlice; ++slice) {
    const int channel = part.channel + slice * T::kSlice;
    if (channel >= p.C) break;
    const unsigned char* stage = ring.await() + offset;
    float4 w[kQuads], v[kQuads];
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      const unsigned char* row = stage + j * 8 * T::kBox * 4;
      w[j] = load4(reinterpret_cast<const float*>(row));
      v[j] = load4(reinterpret_cast<const float*>(row + T::kSliceBytes));
    }
    __syncwarp();  // all lanes have read the stage
    ring.next();
    ring.release(1);
    if (!works) continue;
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      const float* s = sum + (slice * kQuads + j) * 4;
      update(rates, w[j], v[j], transposed({s[0], s[1], s[2], s[3]}));
      const int row = channel + 8 * j + c;
      if (row < p.C && part.filter + k < p.K && !rates.stopped)
        target.store(row, part.filter + k, w[j], v[j]);
    }
  }
}

// The same where the rows of the weights are not aligned.
template <class T>
__device__ __forceinline__ void update_sums(const FilterProblem& p,
                                            const FilterPart<T>& part,
                                            const float (&sum)[T::kColumns / 2],
                                            int warpgroup,
                                            const WeightUpdate& target,
                                            const Rates& rates) {
  if (rates.stopped) return;
  const int thread = threadIdx.x % kWarpgroup;
  const int first_filter = part.filter + 64 * warpgroup + thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
  for (int i = 0; i < T::kColumns / 2; ++i) {
    const int channel = part.channel + threadIdx.x % 4 * 2 + i / 4 * 8 + i % 2;
    const int filter = first_filter + i / 2 % 2 * 8;
    if (channel < p.C && filter < p.K) target.change(rates, channel, filter, sum[i]);
  }
}

// This thread's share of a bias gradient: 16 lanes of every stage, of one filter of its warpgroup.
template <class T>
struct BiasSum {
  static_assert(T::kRow == 64);
  static constexpr int kChunks = 2;  // of eight lanes, 16 bytes each
  float sum = 0.0f;

  __device__ __forceinline__ void add(const unsigned char* dy, int warpgroup, int pixels) {
    const int thread = threadIdx.x % kWarpgroup, row = 64 * warpgroup + thread / kChunks;
    if (T::kFilters % 64 != 0 && row >= T::kFilters) return;
    for (int pixel = 0; pixel < pixels; ++pixel) {
      float part[kChunks];
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const int chunk = (thread % kChunks * kChunks + i) ^ row / 2 % 4;  // swizzled
        const bf16* lanes =
            reinterpret_cast<const bf16*>(dy + pixel * T::kDyBytes + row * T::kRow + chunk * 16);
        const float4 u = load4(lanes), v = load4(lanes + 4);
        part[i] = ((u.x + u.y) + (u.z + u.w)) + ((v.x + v.y) + (v.z + v.w));
      }
      sum += part[0] + part[1];
    }
  }

  // All lanes of a warp must call.
  __device__ __forceinline__ void store(
      const FilterProblem& p, const FilterPart<T>& part, int warpgroup, int number, float* dbias) {
    const float total = sum + warp_shuffle_xor(sum, 1);
    const int thread = threadIdx.x % kWarpgroup;
    const int filter = part.filter + 64 * warpgroup + thread / kChunks;
    if (thread % kChunks == 0 && filter < min(part.filter + T::kFilters, p.K))
      dbias[number * p.part_stride + part.group * p.K + filter] = total;
  }
};

// All products of a part, and its sums of dy where `biased`. `works`: this warpgroup has filters.
template <class T>
__device__ __forceinline__ void multiply_part(const FilterProblem& p,
                                              const FilterPart<T>& part,
                                              int warpgroup,
                                              bool works,
                                              bool biased,
                                              typename T::Sums& sum,
                                              BiasSum<T>& bias,
                                              StageRing& ring) {
  const int x_step = p.stride * T::kXBytes;
  int steps = 0;
  for (FilterWalk walk(p, part); walk.left > 0; walk.next(p)) {
    const int pixels = works ? walk.pixels(p) : 0;
    for (int half = 0; half < T::kHalves; ++half) {
      unsigned char* stage = ring.await();
      const unsigned char* dy = stage + p.x_bytes;
      const auto multiply = [&](auto count) {
        if constexpr (count.value <= T::kMostPixels)
          T::template multiply<count.value>(sum, dy, stage, x_step, warpgroup);
      };
      switch (pixels) {
        case 5:
          multiply(std::integral_constant<int, 5>{});
          break;
        case 4:
          multiply(std::integral_constant<int, 4>{});
          break;
        case 3:
          multiply(std::integral_constant<int, 3>{});
          break;
        case 2:
          multiply(std::integral_constant<int, 2>{});
          break;
        case 1:
          multiply(std::integral_constant<int, 1>{});
          break;
        default:
          break;  // this warpgroup has no filters
      }
      if (biased) bias.add(dy, warpgroup, pixels);
      ring.next();
      if (steps++ > 0) {
        wgmma_wait<1>();  // what read the stage before this one is done
        ring.release(2);
      }
    }
  }
  wgmma_wait<0>();
  T::hold(sum);
  if (steps > 0) ring.release(1);
}

template <class T, class Output>
__device__ __forceinline__ void consume(const FilterProblem& p,
                                        int warpgroup,
                                        const Output& out,
                                        StageRing ring) {
  Rates rates{};
  if constexpr (Output::kUpdates) rates = out.target.rates();
  for_parts<T>(p, [&](const FilterPart<T>& part) {
    const bool works = T::works(p, part, warpgroup);
    const bool biased = out.dbias && part.sees_all(p);
    typename T::Sums sum;
    T::clear(sum);
    BiasSum<T> bias;
    multiply_part<T>(p, part, warpgroup, works, biased, sum, bias, ring);

    if constexpr (Output::kUpdates) {
      if (biased) bias.store(p, part, warpgroup, 0, out.dbias);
      if (out.slices)
        update_slices<T>(p, part, sum, warpgroup, works, out.target, rates, ring);
      else if (works)
        update_sums<T>(p, part, sum, warpgroup, out.target, rates);
    } else {
      T::store(p, part, sum, warpgroup, out.dweight + part.number * p.part_stride);
      if (biased) bias.store(p, part, warpgroup, part.number, out.dbias);
      T::clear(sum);
      bias.sum = 0.0f;
      for (int number = part.number + 1; part.last && number < p.parts;
           ++number) {  // it has no such part
        T::store(p, part, sum, warpgroup, out.dweight + number * p.part_stride);
        if (biased) bias.store(p, part, warpgroup, number, out.dbias);
      }
    }
  });
}

template <class T, class Output>
__global__ void __launch_bounds__(T::kThreads, 1)
    wgmma_filter_kernel(const __grid_constant__ TensorMap dy,
                        const __grid_constant__ TensorMap x,
                        const __grid_constant__ FilterProblem p,
                        const __grid_constant__ Output out) {
  RingBarriers& barriers = shared_storage<RingBarriers>();
  StageRing ring(barriers, p.ring);
  if (threadIdx.x == 0) ring.initialise(T::kConsumers * kWarpgroup / 32);
  begin_kernel();
  __syncthreads();  // the barriers exist

  const int warpgroup = warp_uniform(int(threadIdx.x) / kWarpgroup);
  if (warpgroup == T::kConsumers) {
    become_producer<T::kConsumers>();
    if (threadIdx.x / 32 % 4 == 0 && elect_one()) {
      prefetch(dy);
      prefetch(x);
      produce<T>(p, dy, x, out, ring);
    }
  } else {
    become_consumer<T::kConsumers>();
    // Code of its own where the warpgroups' products differ.
    if (T::kTapRows == 1)
      consume<T>(p, warpgroup, out, ring);
    else if (warpgroup == 0)
      consume<T>(p, 0, out, ring);
    else
      consume<T>(p, 1, out, ring);
  }
}

// ---- host

struct FilterCall {
  Activation dy, x;
  int64_t R, S, stride, pad_top, pad_left, groups;
  bool whole;           // tiles are not cut
  float* dweight;       // [FilterProblem::parts] times dweight,
  float* dbias;         // and dbias, or null,
  int64_t part_stride;  // each so many floats behind the other
};

// Cuts the chunks of all tiles into runs, one for each multiprocessor of a large GPU.
inline void cut_tiles(const char* op, FilterProblem& p, bool whole) {
  constexpr int kBlocks = 132, kFew = 12;
  const int64_t tiles = int64_t{p.tiles()} * p.row_tiles;
  int64_t line = 0, most = 0;  // chunks
  for (int r = 0; r < p.row_tiles; ++r)
    line += p.chunks(r), most = std::max<int64_t>(most, p.chunks(r));
  if (whole || tiles < kFew || tiles > 4 * kBlocks) {
    p.pieces = whole ? 1 : int(std::clamp(kBlocks / tiles, int64_t{1}, most));
    line = int64_t{p.pieces} * p.row_tiles;
  }
  const int64_t units = p.tiles() * line;
  require(units < int64_t{1} << 30, op, ": dweight has too many tiles for one launch, got ", tiles,
          "; use more groups, or run the batch in parts");
  p.line = int(line), p.length = int(units);
  p.run = p.pieces ? 1 : int(ceil_div(units, kBlocks));
  p.runs = int(ceil_div(units, p.run));
  p.parts = p.pieces;
  for (int64_t tile = 0, begin = 0; !p.pieces && tile < tiles; ++tile) {
    const int64_t end = begin + p.chunks(int(tile % p.row_tiles));
    p.parts = std::max(p.parts, int((end - 1) / p.run - begin / p.run + 1));
    begin = end;
  }
}

template <class T>
FilterProblem filter_problem(const char* op, const FilterCall& call) {
  const Activation &dy = call.dy, &x = call.x;
  FilterProblem p{};
  p.C = int(x.maps / call.groups), p.H = int(x.rows), p.W = int(x.columns);
  p.K = int(dy.maps / call.groups), p.P = int(dy.rows), p.Q = int(dy.columns);
  p.R = int(call.R), p.S = int(call.S), p.stride = int(call.stride);
  p.pad_top = int(call.pad_top), p.pad_left = int(call.pad_left);
  p.groups = int(call.groups), p.blocks = int(dy.blocks);
  p.filter_tiles = int(ceil_div(p.K, T::kFilters));
  p.channel_tiles = int(ceil_div(p.C, T::kChannels));
  p.tap_tiles = int(ceil_div(p.S, T::kTaps));
  p.row_tiles = int(ceil_div(p.R, T::kTapRows));
  p.chunk_pixels = chunk_pixels_of<T>(call.stride, dy.columns);
  p.column_chunks = int(ceil_div(dy.columns, p.chunk_pixels));
  p.dy_bytes = p.chunk_pixels * T::kDyBytes;
  p.x_bytes = int(x_pixels_of<T>(call.stride, p.chunk_pixels)) * T::kXBytes;
  p.part_stride = call.part_stride;
  p.all_rows = T::kTapRows > 1;
  // As a rule every output row has an input row there.
  p.bias_row = p.all_rows ? 0 : std::min(p.pad_top, p.R - 1);
  p.ring = filter_ring<T>(call.stride, p.chunk_pixels);
  require(dy.blocks * dy.rows * p.column_chunks < int64_t{1} << 23, op,
          ": the sums have too many pixels for one launch, got ", dy.rows, "x", dy.columns, " of ",
          64 * dy.blocks, " images; run the batch in parts");
  cut_tiles(op, p, call.whole);
  return p;
}

template <class T, class Output>
void launch_filter(const FilterCall& call,
                   const FilterProblem& p,
                   const Output& out,
                   Stream stream) {
  const int64_t x_pixels = x_pixels_of<T>(call.stride, p.chunk_pixels);
  launch(wgmma_filter_kernel<T, Output>, Dim3(unsigned(std::min(p.runs, multiprocessors()))),
         Dim3(T::kThreads), std::size_t(p.ring.bytes()), stream,
         load_map("dy", call.dy, T::kFilters, p.chunk_pixels, T::kLanes),
         T::x_map(call.x, x_pixels), p, out);
}

template <class T>
void launch_filter(const char* op, const FilterCall& call, Stream stream) {
  launch_filter<T>(call, filter_problem<T>(op, call), StoreSums{call.dbias, call.dweight}, stream);
}

// Of a linear layer, whose tiles are not cut; call.dweight is not used.
template <class T>
void launch_filter_update(const char* op,
                          const FilterCall& call,
                          const WeightUpdate& update,
                          Stream stream) {
  FilterProblem p = filter_problem<T>(op, call);
  UpdateWeights out{call.dbias, {}, {}, update, p.K % 4 == 0};
  if (out.slices) {
    p.ring = ring_shape(std::max(p.ring.stage_bytes, 2 * T::kSliceBytes), 0);
    const auto map = [&](const char* what, const float* values) {
      const int64_t row = int64_t{p.K} * 4;
      return tensor_map(what, Element::float32, values, {p.K, p.C, 1, 1, 1}, {row, row, row, row},
                        {T::kBox, T::kSlice, 1, 1, 1}, Swizzle::bytes128);
    };
    out.weight = map("weight", update.weight);
    out.velocity = map("velocity", update.velocity);
  }
  launch_filter<T>(call, p, out, stream);
}

}  // namespace convnet
