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
//            one of the five. Only pixels that the windows of two tiles share are normalised twice:
//            few lanes make larger tiles, which share less. Segments of groups as in lrn.cu. Windows of
//            other than five channels go through a plain loop that reads again what the other keeps.
// Shared     y[2][5][pixel][lane] of the pixels under a tile, 16 bytes per four lanes, at most 80 KB.
//            Even columns lie in front of odd ones, so that windows two columns apart are neighbours.
// Barriers   one per turn, behind the writing of y. The next turn writes to the other half, and the one
//            after that behind another barrier, which no thread passes before all have read.
// Needs      what lrn.cu and maxpool.cu need, and one N, C, H, W and lanes.
// Cost       4 HW + 5 PQ bytes per image and channel (2 HW + 3 PQ in bf16): bound by memory in fp32. In
//            bf16 the issue of about 27 instructions per value takes longer than the memory does.
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

// Of the largest block: two fill a multiprocessor with 64 (bf16) or 96 registers a thread.
template <class T>
constexpr int kTileThreads = sizeof(T) == 2 ? 512 : 320;

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
  // Four bytes, given the place of the window's corner.
  __device__ __forceinline__ uint32_t positions(int) const {
    uint32_t bytes = 0;
#pragma unroll
    for (int l = 0; l < 4; ++l) bytes |= static_cast<uint32_t>(position_[l]) << (8 * l);
    return bytes;
  }

 private:
  float best_[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  int position_[4];
};

// An integer holds the 16 bits of a value above the complement of the place, so that of equal values the
// first is the largest. The bits of negative values are turned around, to be in order; NaN, 0x7fff, is
// above infinity. -0 is below 0: adding 0 to it prevents that they meet.
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
    const uint32_t low = ordered(pack_bf16(y.v[0] + 0.0f, y.v[1] + 0.0f));
    const uint32_t high = ordered(pack_bf16(y.v[2] + 0.0f, y.v[3] + 0.0f));
    const uint32_t rest = 0xffffu - static_cast<uint32_t>(place);
    return Stored{
        {static_cast<int>(low * 0x10000u + rest), static_cast<int>((low & 0xffff0000u) | rest),
         static_cast<int>(high * 0x10000u + rest), static_cast<int>((high & 0xffff0000u) | rest)}};
  }

  __device__ __forceinline__ explicit Maxima(int) {}

  __device__ __forceinline__ void take(const Stored& stored, int) {
#pragma unroll
    for (int l = 0; l < 4; ++l) best_.key[l] = max(best_.key[l], stored.key[l]);
  }

  __device__ __forceinline__ bf16x4 values() const {
    return bf16x4{ordered(pick_bytes<2, 3, 6, 7>(key(0), key(1))),
                  ordered(pick_bytes<2, 3, 6, 7>(key(2), key(3)))};
  }
  __device__ __forceinline__ uint32_t positions(int corner) const {
    // Two at a time; nothing is borrowed, since no place is in front of the corner.
    const uint32_t first = (0xffffu - static_cast<uint32_t>(corner)) * 0x10001u;
    return pick_bytes<0, 2, 4, 6>(first - pick_bytes<0, 1, 4, 5>(key(0), key(1)),
                                  first - pick_bytes<0, 1, 4, 5>(key(2), key(3)));
  }

 private:
  // Of two values; its own inverse.
  static __device__ __forceinline__ uint32_t ordered(uint32_t pair) {
    return pair ^ (spread_signs<1, 3>(pair) & 0x7fff7fffu);
  }
  __device__ __forceinline__ uint32_t key(int l) const {
    return static_cast<uint32_t>(best_.key[l]);
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
    step_ = static_cast<uint32_t>(column.step);
    next_ = x + column.first + (column.begin + kBefore) * column.step;
    behind_ = min(kBefore, column.channels - column.end);
#pragma unroll
    for (int u = 0; u < kTurn; ++u) ahead_[u] = read(column.end - column.begin - kBefore - u);
  }

  // Channel u of a turn, every one in order, with `remaining` channels to the end.
  __device__ __forceinline__ Lanes<4> normalised(
      const LrnShape& lrn, const Column&, const T*, int remaining, int u) {
    ring_[(u + kSize - 1) % kSize] = lanes_of(unpack4(ahead_[u]));
    ahead_[u] = read(remaining - kTurn - u - kBefore);
    Lanes<4> y;
#pragma unroll
    for (int l = 0; l < 4; ++l)
      y.v[l] = ring_[(u + kBefore) % kSize].v[l] *
               powers<true>(ring_divisor(lrn, ring_, u, l), lrn.beta).denominator;
    return y;
  }

 private:
  // Nothing behind the last channel's window, and zeros outside of the group.
  __device__ __forceinline__ Packed<T> read(int remaining) {
    const Packed<T> values = remaining + behind_ > 0 ? load_packed(next_) : Packed<T>{};
    next_ += step_;
    return values;
  }

  Lanes<4> ring_[kSize];
  Packed<T> ahead_[kTurn];
  const T* next_;  // the channel to be read next
  uint32_t step_;  // to the next; launches that need more bits are refused
  int behind_;     // channels behind the end that are needed and exist
};

// Reads the window anew for every channel.
template <class T>
class Reading {
 public:
  __device__ __forceinline__ void begin(const Column&, const T*) {}

  __device__ __forceinline__ Lanes<4> normalised(
      const LrnShape& lrn, const Column& column, const T* x, int remaining, int u) {
    const int c = column.end - remaining;
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
  int log_units,
      slices;  // quads of lanes of a block, as a logarithm; blocks that share a pixel's lanes
  int threads;
  int x_step, p_step;  // values of a channel
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
  const auto thread = static_cast<uint32_t>(threadIdx.x);
  const auto units = 1u << tiling.log_units, unit = thread & (units - 1);
  const int size = kPool ? kPool : static_cast<int>(pool.size);
  const int stride = static_cast<int>(pool.stride), lanes = static_cast<int>(pool.lanes);
  const int H = static_cast<int>(pool.H), W = static_cast<int>(pool.W);
  const int P = static_cast<int>(pool.P), Q = static_cast<int>(pool.Q);

  int segment = static_cast<int>(blockIdx.x), slice = 0;  // counted through all image blocks
  if (tiling.slices > 1) {
    segment /= tiling.slices;
    slice = static_cast<int>(blockIdx.x) - segment * tiling.slices;
  }
  const int first_p = static_cast<int>(blockIdx.y) * tiling.P;
  const int first_q = static_cast<int>(blockIdx.z) * tiling.Q;
  const int top = first_p * stride - static_cast<int>(pool.pad_top);
  const int left = first_q * stride - static_cast<int>(pool.pad_left);
  const int lane = 4 * (slice * static_cast<int>(units) + static_cast<int>(unit));

  // What this thread normalises: pixel (h, w).
  const auto columns = static_cast<uint32_t>(tiling.columns);
  const uint32_t pixel = thread >> tiling.log_units;
  const int row = static_cast<int>(pixel / columns);
  const int h = top + row;
  const int w = left + column_at(static_cast<int>(pixel % columns), tiling.columns);
  const bool normalises = row < tiling.rows && h >= 0 && h < H && w >= 0 && w < W;
  const Column column =
      column_of(cut, segment, tiling.x_step, normalises ? (h * W + w) * lanes + lane : lane);

  // What it pools: channel `turn_channel` of every turn at pooled pixel (tile_p, tile_q) of the tile.
  const auto tile_Q = static_cast<uint32_t>(tiling.Q);
  const uint32_t pooled_pixels = static_cast<uint32_t>(tiling.P) * tile_Q;
  const int turn_channel = static_cast<int>(pixel / pooled_pixels);
  const uint32_t pooled = pixel % pooled_pixels;
  const int tile_p = static_cast<int>(pooled / tile_Q), tile_q = static_cast<int>(pooled % tile_Q);
  const bool pools = turn_channel < kTurn && first_p + tile_p < P && first_q + tile_q < Q;
  const int before =
      pools ? turn_channel : INT32_MAX;  // that many channels of a turn, and one more
  const int out_place = ((first_p + tile_p) * Q + first_q + tile_q) * lanes + lane;
  const Column out = column_of(cut, segment, tiling.p_step, pools ? out_place : lane);
  int64_t target = out.first + (out.begin + turn_channel) * out.step;
  const int window_row = tile_p * stride, window_column = tile_q * stride;
  const int corner = window_row * size + window_column;
  const int first = (top + window_row < 0 ? -(top + window_row) : 0) * size +
                    (left + window_column < 0 ? -(left + window_column) : 0);

  const int row_quads = tiling.columns << tiling.log_units;
  const int tile_quads = tiling.rows * row_quads;  // of a channel
  const int place = row * size + w - left;
  const int taps_at = turn_channel * tile_quads + window_row * row_quads + static_cast<int>(unit);
  const auto tap_of = [&](int s) {
    return place_of(window_column + s, tiling.columns) << tiling.log_units;
  };
  int taps_of[kPool ? kPool : 1];
#pragma unroll
  for (int s = 0; s < kPool; ++s) taps_of[s] = tap_of(s);
  Normaliser normaliser;
  if (normalises)
    normaliser.begin(column, x);
  else if (row < tiling.rows)
    for (int i = 0; i < 2 * kTurn; ++i) halves[i * tile_quads + thread] = Maxima<T>::outside();
  int half = 0;  // where this turn's half begins
#pragma unroll 1
  for (int remaining = column.end - column.begin; remaining > 0; remaining -= kTurn) {
    Stored* const y = halves + half;
    if (normalises) {
#pragma unroll
      for (int u = 0; u < kTurn; ++u)
        y[u * tile_quads + thread] =
            Maxima<T>::stored(normaliser.normalised(lrn, column, x, remaining, u), place);
    }
    __syncthreads();  // this turn's y is there
    if (remaining > before) {
      const Stored* taps = y + taps_at;
      Maxima<T> maxima(first);
#pragma unroll(kPool && sizeof(T) == 2 ? kPool : 1)  // a row of 16 bytes in registers is enough
      for (int r = 0; r < size; ++r) {
#pragma unroll(kPool ? kPool : 1)
        for (int s = 0; s < size; ++s)
          maxima.take(taps[kPool ? taps_of[s] : tap_of(s)], r * size + s);
        taps += row_quads;
      }
      store_packed(p + target, maxima.values());
      if (argmax) store4_bytes(argmax + target, maxima.positions(corner));
    }
    target += kTurn * tiling.p_step;
    half = kTurn * tile_quads - half;
  }
}

// The tile with the least work: pixels that are normalised, threads that are there for them, pixels that
// are pooled. One quad of lanes under the largest window, of 15 x 15, fits always.
Tiling tiling_for(const PoolShape& pool, int most_threads) {
  Tiling best{};
  int64_t least = INT64_MAX;
  for (int log_units = pool.lanes % 16 == 0 ? 2 : 1; log_units >= 1 || !best.threads; --log_units) {
    const int64_t units = 1 << log_units, slices = pool.lanes / 4 >> log_units;
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
        const int64_t work =
            slices * (2 * units * pixels + down * across * (threads + units * P * Q));
        if (work >= least) continue;
        least = work;
        best = Tiling{static_cast<int>(P),
                      static_cast<int>(Q),
                      static_cast<int>(rows),
                      static_cast<int>(columns),
                      static_cast<int>(down),
                      static_cast<int>(across),
                      log_units,
                      static_cast<int>(slices),
                      static_cast<int>(threads),
                      static_cast<int>(pool.H * pool.W * pool.lanes),
                      static_cast<int>(pool.P * pool.Q * pool.lanes)};
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
  const std::size_t shared = sizeof(typename Maxima<T>::Stored) * 2 * kTurn *
                             (tiling.rows * tiling.columns << tiling.log_units);
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
  require(planes * cut.segments * tiling.slices <= kMaxGrid && tiling.down <= 65535 &&
              tiling.across <= 65535,
          op, ": ", lrn.N, "x", lrn.C, "x", lrn.H, "x", lrn.W,
          " is too large for one launch; use a smaller batch");
  const Dim3 grid(static_cast<unsigned>(planes * cut.segments * tiling.slices),
                  static_cast<unsigned>(tiling.down), static_cast<unsigned>(tiling.across));
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch_forward(lrn, pool, tiling, cut, grid, static_cast<const T*>(x), static_cast<T*>(p),
                   argmax, stream);
  });
}

}  // namespace convnet
