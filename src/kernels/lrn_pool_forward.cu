// The max-pool of a local response normalisation, forward.
//
// What       p = max-pool of y, y_i = x_i d_i^-beta with d_i = k + alpha * sum of x_j^2 over j in
//            window(i), and argmax = position of each maximum in its window. lrn.cu and maxpool.cu say
//            the rest; y and d exist in registers and shared memory alone.
// Tensors    x [N/L][C][H][W][L], p [N/L][C][P][Q][L] by precision, argmax uint8 as p. In bf16 y is
//            rounded before it is compared, as lrn_forward would.
// Work       a block computes a tile of pooled pixels for 8 or 16 lanes. A thread walks the channels
//            at one pixel under the tile, four lanes of it, with the window in registers, and
//            normalises five channels in a turn; then a thread takes the maxima of one pooled pixel of
//            one of the five. Only pixels that the windows of two tiles share are normalised twice.
//            Segments of groups as in lrn.cu. Windows of other than five channels go through a plain
//            loop that reads again what the other keeps.
// Shared     y[2][5][pixel][lane] of the pixels under a tile, 16 bytes per four lanes, at most 60 KB.
//            Even columns lie in front of odd ones, so that windows two columns apart are neighbours.
// Barriers   one per turn, behind the writing of y. The next turn writes to the other half, and the one
//            after that behind another barrier, which no thread passes before all have read.
// Needs      what lrn.cu and maxpool.cu need, and one N, C, H, W and lanes.
// Cost       4 HW + 5 PQ bytes per image and channel (2 HW + 3 PQ in bf16): bound by memory in fp32. In
//            bf16 the issue of about 30 instructions per value takes longer than the memory does.
#include "lrn_pool_forward.hpp"

#include <cmath>

#include "arch/arch.cuh"
#include "tile/channels.cuh"
#include "tile/pool_windows.cuh"

namespace convnet {
namespace {

constexpr int kSize = 5;  // channels of the window that lies in registers
constexpr int kBefore = kSize / 2;
constexpr int kTurn = kSize;  // so many channels later every slot of the window is where it was

// Of the largest block: two fill a multiprocessor with 80 (bf16) or 96 registers a thread.
template <class T>
constexpr int kTileThreads = sizeof(T) == 2 ? 384 : 320;

// The maxima of a window's normalised values, four lanes of them, and their positions in the window;
// `Stored` is what lies in shared memory of such four. A place is row * size + column within the tile:
// it is different for every pixel of a window, grows in row order, and is the position plus the place
// of the window's corner.
template <class T>
class Maxima;

template <>
class Maxima<float> {
 public:
  using Stored = float4;

  // Below everything: what stands for pixels outside of the image.
  static __device__ __forceinline__ Stored outside() {
    return float4{-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  }
  static __device__ __forceinline__ Stored stored(const Lanes<4>& y, int) {
    return float4{y.v[0], y.v[1], y.v[2], y.v[3]};
  }

  // `first` is the position of the window's first pixel in the image, its maximum where all are -inf.
  __device__ __forceinline__ explicit Maxima(int first) : position_{first, first, first, first} {}

  __device__ __forceinline__ void take(const Stored& stored, int position) {
    const Lanes<4> value = lanes_of(stored);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      // Larger, or NaN; a best that is NaN is not equal to itself and stays.
      if (best_[l] == best_[l] && !(value.v[l] <= best_[l])) {
        best_[l] = value.v[l];
        position_[l] = position;
      }
    }
  }

  __device__ __forceinline__ float4 values() const {
    return float4{best_[0], best_[1], best_[2], best_[3]};
  }
  __device__ __forceinline__ int position(int l, int) const { return position_[l]; }

 private:
  float best_[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  int position_[4];
};

// Half of the bits of a float32 are enough for the value: an integer holds it above the complement of
// the place, so that of equal values the first is the largest. The bits of negative values are turned
// around, to be in order; NaN, 0x7fff, is above infinity. -0 is below 0: adding 0 to it prevents that
// they meet.
template <>
class Maxima<bf16> {
 public:
  struct alignas(16) Stored {
    int key[4];
  };

  static __device__ __forceinline__ Stored outside() {
    return Stored{{INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN}};
  }
  static __device__ __forceinline__ Stored stored(const Lanes<4>& y, int place) {
    const uint32_t low = pack_bf16(y.v[0] + 0.0f, y.v[1] + 0.0f);
    const uint32_t high = pack_bf16(y.v[2] + 0.0f, y.v[3] + 0.0f);
    const uint32_t rest = 0xffffu - static_cast<uint32_t>(place);
    return Stored{{ordered(low * 0x10000u + rest), ordered((low & 0xffff0000u) | rest),
                   ordered(high * 0x10000u + rest), ordered((high & 0xffff0000u) | rest)}};
  }

  __device__ __forceinline__ explicit Maxima(int) {}

  __device__ __forceinline__ void take(const Stored& stored, int) {
#pragma unroll
    for (int l = 0; l < 4; ++l) best_.key[l] = max(best_.key[l], stored.key[l]);
  }

  __device__ __forceinline__ float4 values() const {
    return unpack4(
        bf16x4{bits(0) >> 16 | (bits(1) & 0xffff0000u), bits(2) >> 16 | (bits(3) & 0xffff0000u)});
  }
  __device__ __forceinline__ int position(int l, int corner) const {
    return 0xffff - corner - (best_.key[l] & 0xffff);
  }

 private:
  // Its own inverse.
  static __device__ __forceinline__ int ordered(uint32_t bits) {
    const int key = static_cast<int>(bits);
    return key ^ (key >> 31 & 0x7fff0000);
  }
  __device__ __forceinline__ uint32_t bits(int l) const {
    return static_cast<uint32_t>(ordered(static_cast<uint32_t>(best_.key[l])));
  }

  Stored best_ = outside();
};

// Normalises with the window in registers, while the next turn's channels are under way.
template <class T>
class Sliding {
 public:
  __device__ __forceinline__ void begin(const Column& column, const T* x) {
#pragma unroll
    for (int j = 0; j < kSize - 1; ++j) ring_[j] = column.read<4>(x, column.begin - kBefore + j);
    step_ = static_cast<int>(column.step);
    next_ = x + column.first + (column.begin + kBefore) * column.step;
    behind_ = column.end + kBefore < column.channels ? column.end + kBefore : column.channels;
#pragma unroll
    for (int u = 0; u < kTurn; ++u) ahead_[u] = read(column.begin + kBefore + u);
  }

  // Channel c + u; every u of a turn, in order.
  __device__ __forceinline__ Lanes<4> normalised(
      const LrnShape& lrn, const Column&, const T*, int c, int u) {
    ring_[(u + kSize - 1) % kSize] = lanes_of(unpack4(ahead_[u]));
    ahead_[u] = read(c + kTurn + u + kBefore);
    Lanes<4> y;
#pragma unroll
    for (int l = 0; l < 4; ++l)
      y.v[l] = ring_[(u + kBefore) % kSize].v[l] *
               powers<true>(ring_divisor(lrn, ring_, u, l), lrn.beta).denominator;
    return y;
  }

 private:
  // Nothing behind the last channel's window, and zeros outside of the group.
  __device__ __forceinline__ Packed<T> read(int c) {
    const Packed<T> values = c < behind_ ? load_packed(next_) : Packed<T>{};
    next_ += step_;
    return values;
  }

  Lanes<4> ring_[kSize];
  Packed<T> ahead_[kTurn];
  const T* next_;  // the channel to be read next
  int step_;       // to the next; launches that need more bits are refused
  int behind_;     // the first channel that need not be read
};

// Reads the window anew for every channel.
template <class T>
class Reading {
 public:
  __device__ __forceinline__ void begin(const Column&, const T*) {}

  __device__ __forceinline__ Lanes<4> normalised(
      const LrnShape& lrn, const Column& column, const T* x, int c, int u) {
    const Lanes<4> value = column.read<4>(x, c + u), d = read_divisor(lrn, column, x, c + u);
    Lanes<4> y;
#pragma unroll
    for (int l = 0; l < 4; ++l) y.v[l] = value.v[l] * powers<false>(d.v[l], lrn.beta).denominator;
    return y;
  }
};

// A block's share of the pooled image.
struct Tiling {
  int P, Q;           // pooled pixels of a tile
  int rows, columns;  // pixels under it
  int down, across;   // tiles of an image
  int units, slices;  // quads of lanes of a block; blocks that share a pixel's lanes
  int threads;
};

// kPool 0: the size is pool.size.
template <class T, class Normaliser, int kPool>
__global__ void __launch_bounds__(kTileThreads<T>, 2)
    lrn_pool_forward_kernel(LrnShape lrn,
                            PoolShape pool,
                            Tiling tiling,
                            Cut cut,
                            const T* x,
                            T* __restrict__ p,
                            uint8_t* __restrict__ argmax) {
  begin_kernel();
  using Stored = typename Maxima<T>::Stored;
  Stored* const halves = &shared_storage<Stored>();
  const int thread = static_cast<int>(threadIdx.x), units = tiling.units;
  const int size = kPool ? kPool : static_cast<int>(pool.size);
  const int stride = static_cast<int>(pool.stride);
  const int H = static_cast<int>(pool.H), W = static_cast<int>(pool.W);
  const int P = static_cast<int>(pool.P), Q = static_cast<int>(pool.Q);

  int rest = static_cast<int>(blockIdx.x);
  const int slice = rest % tiling.slices;
  rest /= tiling.slices;
  const int first_q = rest % tiling.across * tiling.Q;
  rest /= tiling.across;
  const int first_p = rest % tiling.down * tiling.P;
  const int segment = rest / tiling.down;  // counted through the groups of all image blocks
  const int top = first_p * stride - static_cast<int>(pool.pad_top);
  const int left = first_q * stride - static_cast<int>(pool.pad_left);
  const int lane = 4 * (slice * units + thread % units);

  // What this thread normalises: pixel (h, w).
  const int pixel = thread / units, row = pixel / tiling.columns;
  const int h = top + row, w = left + column_at(pixel - row * tiling.columns, tiling.columns);
  const bool normalises = row < tiling.rows && h >= 0 && h < H && w >= 0 && w < W;
  const Column column = column_of(cut, segment, pool.H * pool.W * pool.lanes,
                                  (int64_t{h} * W + w) * pool.lanes + lane);

  // What it pools: channel `turn_channel` of every turn at pooled pixel (tile_p, tile_q) of the tile.
  const int quads = tiling.P * tiling.Q * units, turn_channel = thread / quads;
  const int pooled = (thread - turn_channel * quads) / units;
  const int tile_p = pooled / tiling.Q, tile_q = pooled - tile_p * tiling.Q;
  const bool pools = turn_channel < kTurn && first_p + tile_p < P && first_q + tile_q < Q;
  const int pool_end = pools ? column.end - turn_channel : 0;
  const int64_t out_place = (int64_t{first_p + tile_p} * Q + first_q + tile_q) * pool.lanes + lane;
  const Column out = column_of(cut, segment, pool.P * pool.Q * pool.lanes, out_place);
  int64_t target = out.first + (out.begin + turn_channel) * out.step;
  const int window_row = tile_p * stride, window_column = tile_q * stride;
  const int corner = window_row * size + window_column;
  const int first = (top + window_row < 0 ? -(top + window_row) : 0) * size +
                    (left + window_column < 0 ? -(left + window_column) : 0);

  const int tile_quads = tiling.rows * tiling.columns * units;  // of a channel
  const int place = row * size + w - left;
  const int taps_at =
      turn_channel * tile_quads + window_row * tiling.columns * units + thread % units;
  Normaliser normaliser;
  if (normalises)
    normaliser.begin(column, x);
  else if (row < tiling.rows)
    for (int i = 0; i < 2 * kTurn; ++i) halves[i * tile_quads + thread] = Maxima<T>::outside();
  int half = 0;  // where this turn's half begins
#pragma unroll 1
  for (int c = column.begin; c < column.end; c += kTurn) {
    Stored* const y = halves + half;
    if (normalises) {
#pragma unroll
      for (int u = 0; u < kTurn; ++u)
        y[u * tile_quads + thread] =
            Maxima<T>::stored(normaliser.normalised(lrn, column, x, c, u), place);
    }
    __syncthreads();  // this turn's y is there
    if (c < pool_end) {
      const Stored* const taps = y + taps_at;
      Maxima<T> maxima(first);
#pragma unroll 1  // a row's values in registers are enough
      for (int r = 0; r < size; ++r) {
#pragma unroll(kPool ? kPool : 1)
        for (int s = 0; s < size; ++s) {
          const int k = (r * tiling.columns + place_of(window_column + s, tiling.columns)) * units;
          maxima.take(taps[k], r * size + s);
        }
      }
      store4(p + target, maxima.values());
      if (argmax) {
        uint32_t positions = 0;
#pragma unroll
        for (int l = 0; l < 4; ++l)
          positions |= static_cast<uint32_t>(maxima.position(l, corner)) << (8 * l);
        store4_bytes(argmax + target, positions);
      }
    }
    target += kTurn * static_cast<int>(out.step);
    half = kTurn * tile_quads - half;
  }
}

// The tile with the least work: pixels that are normalised, and threads that are there for them.
// One quad of lanes under the largest window, of 15 x 15, fits always.
Tiling tiling_for(const PoolShape& pool, int most_threads) {
  Tiling best{};
  int64_t least = INT64_MAX;
  for (int units = pool.lanes % 16 == 0 ? 4 : 2; best.threads == 0; units /= 2) {
    for (int64_t P = 1; P <= pool.P; ++P) {
      for (int64_t Q = 1; Q <= pool.Q; ++Q) {
        const int64_t rows = (P - 1) * pool.stride + pool.size;
        const int64_t columns = (Q - 1) * pool.stride + pool.size;
        const int64_t threads = (units * std::max(rows * columns, kTurn * P * Q) + 31) / 32 * 32;
        if (threads > most_threads) break;
        const int64_t down = (pool.P + P - 1) / P, across = (pool.Q + Q - 1) / Q;
        const int64_t overlap = pool.size - pool.stride;
        const int64_t pixels =
            (pool.P * pool.stride + down * overlap) * (pool.Q * pool.stride + across * overlap);
        const int64_t work = units * pixels + down * across * threads;
        if (work >= least) continue;
        least = work;
        best = Tiling{static_cast<int>(P),
                      static_cast<int>(Q),
                      static_cast<int>(rows),
                      static_cast<int>(columns),
                      static_cast<int>(down),
                      static_cast<int>(across),
                      units,
                      static_cast<int>(pool.lanes / 4 / units),
                      static_cast<int>(threads)};
      }
    }
  }
  return best;
}

template <class T>
void launch_forward(const LrnShape& lrn,
                    const PoolShape& pool,
                    const Tiling& tiling,
                    const Cut& cut,
                    Dim3 grid,
                    const T* x,
                    T* p,
                    uint8_t* argmax,
                    Stream stream) {
  auto* kernel = lrn_pool_forward_kernel<T, Reading<T>, 0>;
  if (lrn.size == kSize && takes_roots(lrn))
    kernel = pool.size == 3 ? lrn_pool_forward_kernel<T, Sliding<T>, 3>
                            : lrn_pool_forward_kernel<T, Sliding<T>, 0>;
  const std::size_t shared =
      sizeof(typename Maxima<T>::Stored) * 2 * kTurn * tiling.rows * tiling.columns * tiling.units;
  launch(kernel, grid, Dim3(static_cast<unsigned>(tiling.threads)), shared, stream, lrn, pool,
         tiling, cut, x, p, argmax);
}

}  // namespace

void lrn_pool_forward(const LrnShape& lrn,
                      const PoolShape& pool,
                      Precision precision,
                      const void* x,
                      void* p,
                      uint8_t* argmax,
                      Stream stream) {
  const char* op = "lrn_pool_forward";
  check_lrn_pool(op, lrn, pool);
  require_aligned(op, argmax);
  const int64_t planes = image_blocks(op, lrn.N, lrn.lanes) * lrn.groups;
  // In front of the search for a tile, whose time grows with the image.
  require(kTurn * pool.H * pool.W * pool.lanes <= kMaxGrid &&
              kTurn * pool.P * pool.Q * pool.lanes <= kMaxGrid,
          op, ": an image of ", lrn.H, "x", lrn.W, " in ", lrn.lanes,
          " lanes is too large for 32-bit indices; use fewer lanes");
  const Tiling tiling =
      tiling_for(pool, precision == Precision::bf16 ? kTileThreads<bf16> : kTileThreads<float>);
  const int64_t tiles = int64_t{tiling.down} * tiling.across * tiling.slices;
  const Cut cut = cut_channels(op, lrn, planes * tiles * tiling.threads);
  require(planes * cut.segments * tiles <= kMaxGrid, op, ": ", lrn.N, "x", lrn.C, "x", lrn.H, "x",
          lrn.W, " is too large for one launch; use a smaller batch");
  const Dim3 grid(static_cast<unsigned>(planes * cut.segments * tiles));
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch_forward(lrn, pool, tiling, cut, grid, static_cast<const T*>(x), static_cast<T*>(p),
                   argmax, stream);
  });
}

}  // namespace convnet
