// Local response normalisation and the max-pooling behind it.
//
// What       forward p = max-pool of y, y_i = x_i d_i^-beta with d_i = k + alpha * sum of x_j^2 over
//            j in window(i), and argmax = position of each maximum in its window; backward dx from
//            dp, x and argmax: dy gathers the windows that a pixel won, in row order, then dx_i = dy_i
//            d_i^-beta - 2 alpha beta x_i * sum of t_f over the f whose window holds i, t_f = dy_f x_f
//            d_f^(-beta-1), and 0 where x_i is no positive output of a ReLU. lrn.cu and maxpool.cu say
//            the rest; y, dy and d exist in registers and shared memory alone.
// Tensors    x, dx [N/L][C][H][W][L], p, dp [N/L][C][P][Q][L] by precision, argmax uint8 as p. In bf16
//            y is rounded before it is compared, as lrn_forward would; dy is not rounded.
// Work       forward: a block computes a tile of pooled pixels for 8 or 16 lanes. A thread walks the
//            channels at one pixel under the tile, four lanes of it, with the window in registers, and
//            normalises five channels in a turn; then a thread takes the maxima of one pooled pixel of
//            one of the five. Only pixels that the windows of two tiles share are normalised twice.
//            Backward: a thread walks the channels at one pixel, four lanes of it; x, the pixel's
//            windows and the sums move through its registers, and windows that neighbours share meet
//            in the L1 and L2 caches. Threads whose pixels lie in equally many windows (1, 2 or 4)
//            stand side by side, even columns first, and each number has a walk of its own.
//            Both: segments of groups as in lrn.cu. Windows of other than five channels, and backward
//            pooling windows wider than two strides, go through plain loops that read again what the
//            others keep.
// Shared     forward: y[2][5][pixel][lane] of the pixels under a tile, 16 bytes per four lanes, at most
//            60 KB. Even columns lie in front of odd ones, so that windows two columns apart are
//            neighbours.
// Barriers   forward: one per turn, behind the writing of y. The next turn writes to the other half, and
//            the one after that behind another barrier, which no thread passes before all have read.
// Needs      what lrn.cu and maxpool.cu need, and one N, C, H, W and lanes.
// Cost       forward 4 HW + 5 PQ bytes per image and channel (2 HW + 3 PQ in bf16), backward 8 HW + 5 PQ
//            (4 HW + 3 PQ): bound by memory in fp32. In bf16 the issue of about 30 instructions per
//            value forward and 43 backward takes longer than the memory does.
#include "lrn_pool.hpp"

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

template <class T>
using Packed = decltype(load_packed(static_cast<const T*>(nullptr)));

__device__ __forceinline__ Lanes<4> lanes_of(float4 quad) {
  return {{quad.x, quad.y, quad.z, quad.w}};
}

// Columns in the order 0, 2, 4, ..., 1, 3, ...: the k-th of them, and which one a column is.
__device__ __forceinline__ int column_at(int k, int columns) {
  const int even = (columns + 1) / 2;
  return k < even ? 2 * k : 2 * (k - even) + 1;
}

__device__ __forceinline__ int place_of(int column, int columns) {
  return column / 2 + (column % 2 ? (columns + 1) / 2 : 0);
}

// The divisor of one lane whose window's first channel is in slot `first`.
__device__ __forceinline__ float ring_divisor(const LrnShape& lrn,
                                              const Lanes<4> (&ring)[kSize],
                                              int first,
                                              int lane) {
  return divisor<kSize>(lrn, [&](int j) { return ring[(first + j) % kSize].v[lane]; });
}

// The divisors at channel c, its window read from memory; any size.
template <class T>
__device__ __forceinline__ Lanes<4> read_divisor(const LrnShape& lrn,
                                                 const Column& column,
                                                 const T* x,
                                                 int c) {
  const int size = static_cast<int>(lrn.size);
  Lanes<4> sum{};
  for (int j = c - size / 2; j < c - size / 2 + size; ++j) {
    const Lanes<4> value = column.read<4>(x, j);
#pragma unroll
    for (int l = 0; l < 4; ++l) sum.v[l] = fma_rn(value.v[l], value.v[l], sum.v[l]);
  }
#pragma unroll
  for (int l = 0; l < 4; ++l) sum.v[l] = fma_rn(lrn.alpha, sum.v[l], lrn.k);
  return sum;
}

// ---- forward ----

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

// ---- backward ----

// What a walk reads of one channel ahead of the one it is at.
template <class T, int kWindows>
struct Ahead {
  Packed<T> x, dp[kWindows];
  uint32_t winners[kWindows];
};

// The gradient at one pixel, four lanes of it.
template <class T>
struct Gradient {
  const LrnShape& lrn;
  const PoolShape& pool;
  const T* dp;
  const uint8_t* argmax;
  const T* x;
  T* dx;
  bool relu;
  Column column, out;      // of x and of dp; out's offset is that of the plane's first pixel
  int row, col;            // of the pixel in the padded image
  Covering rows, columns;  // the windows that hold it

  __device__ __forceinline__ Gradient(const LrnShape& lrn,
                                      const PoolShape& pool,
                                      const Cut& cut,
                                      const LanePlace& at,
                                      const T* dp,
                                      const uint8_t* argmax,
                                      const T* x,
                                      T* dx,
                                      bool relu)
      : lrn(lrn),
        pool(pool),
        dp(dp),
        argmax(argmax),
        x(x),
        dx(dx),
        relu(relu),
        out(column_of(cut, at.plane, pool.P * pool.Q * pool.lanes, at.lane)),
        row(at.pixel / static_cast<int>(pool.W)),
        col(column_at(at.pixel - row * static_cast<int>(pool.W), static_cast<int>(pool.W))),
        rows(row + static_cast<int>(pool.pad_top), pool, pool.P),
        columns(col + static_cast<int>(pool.pad_left), pool, pool.Q) {
    const int64_t pixel = row * pool.W + col;
    column = column_of(cut, at.plane, pool.H * pool.W * pool.lanes, pixel * pool.lanes + at.lane);
    row += static_cast<int>(pool.pad_top);
    col += static_cast<int>(pool.pad_left);
  }

  // Where the pixel lies in window (r, s), as argmax counts.
  __device__ __forceinline__ uint32_t position(int r, int s) const {
    const int stride = static_cast<int>(pool.stride);
    return static_cast<uint32_t>((row - r * stride) * static_cast<int>(pool.size) + col -
                                 s * stride);
  }

  // From the sum of the terms, and d^-beta dy.
  __device__ __forceinline__ float result(float direct, float value, float sum) const {
    const float slope = lrn_slope(lrn, direct, value, sum);
    return !relu || value > 0.0f ? slope : 0.0f;
  }

  // For windows of kSize channels, in at most kRows x kColumns pooling windows. At channel c the newest
  // term t_f is that of f = c + kBefore, whose window begins at c: the three rings move together.
  template <int kRows, int kColumns>
  __device__ __forceinline__ void walk() const {
    constexpr int kWindows = kRows * kColumns;
    int offset[kWindows];
    uint32_t place[kWindows];  // position() in all four bytes
#pragma unroll
    for (int k = 0; k < kWindows; ++k) {
      // A window that does not exist is read at a legal place; no maximum lies at 255.
      const int r = rows.first + k / kColumns, s = columns.first + k % kColumns;
      const int P = static_cast<int>(pool.P), Q = static_cast<int>(pool.Q);
      offset[k] = (clamp(r, 0, P - 1) * Q + clamp(s, 0, Q - 1)) * static_cast<int>(pool.lanes);
      place[k] = r <= rows.last && s <= columns.last ? position(r, s) * 0x01010101u : 0xffffffffu;
    }

    Lanes<4> window[kSize], terms[kSize], direct[kSize];
    // The terms of the first output begin here; there are none in front of the group.
    const int start = column.begin > 0 ? column.begin - (kSize - 1) : -kBefore;
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      window[j] = j < kSize - 1 ? column.read<4>(x, start + j) : Lanes<4>{};
      terms[j] = direct[j] = Lanes<4>{};
    }

    // The last value of the window that begins at channel c, and what the term of its channel needs;
    // nothing where no output needs it, and no gradient where the window's channel does not exist.
    const T* next_x = x + column.first + (start + kSize - 1) * column.step;
    int64_t next_p = out.first + (start + kBefore) * out.step;
    const auto read = [&](int c) {
      Ahead<T, kWindows> ahead{};
      if (c < column.end && c + kSize - 1 < column.channels) ahead.x = load_packed(next_x);
      if (c < column.end && column.has(c + kBefore)) {
#pragma unroll
        for (int k = 0; k < kWindows; ++k) {
          ahead.dp[k] = load_packed(dp + next_p + offset[k]);
          ahead.winners[k] = load4_bytes(argmax + next_p + offset[k]);
        }
      }
      next_x += column.step;
      next_p += out.step;
      return ahead;
    };
    Ahead<T, kWindows> next = read(start);
    T* target = dx + column.first + start * column.step;
#pragma unroll 1
    for (int c = start; c < column.end; c += kSize) {
#pragma unroll
      for (int u = 0; u < kSize; ++u) {
        const Ahead<T, kWindows> now = next;
        next = read(c + u + 1);
        window[(u + kSize - 1) % kSize] = lanes_of(unpack4(now.x));
        Lanes<4> slope{};
#pragma unroll
        for (int k = 0; k < kWindows; ++k) {
          const Lanes<4> value = lanes_of(unpack4(now.dp[k]));
          const uint32_t differs = now.winners[k] ^ place[k];
#pragma unroll
          for (int l = 0; l < 4; ++l)
            if ((differs & 0xffu << (8 * l)) == 0) slope.v[l] += value.v[l];
        }
        Lanes<4> results;
#pragma unroll
        for (int l = 0; l < 4; ++l) {
          const Powers power = powers<true>(ring_divisor(lrn, window, u, l), lrn.beta);
          const float scaled = lrn_direct(slope.v[l], power);
          direct[(u + kBefore) % kSize].v[l] = scaled;
          terms[(u + kSize - 1) % kSize].v[l] =
              lrn_term(scaled, window[(u + kBefore) % kSize].v[l], power);
          float sum = 0.0f;
#pragma unroll
          for (int j = 0; j < kSize; ++j) sum += terms[(u + j) % kSize].v[l];
          results.v[l] = result(direct[u].v[l], window[u].v[l], sum);
        }
        if (c + u >= column.begin && c + u < column.end) store(target, results);
        target += column.step;
      }
    }
  }

  // For any windows: every term is computed again for each channel that it belongs to.
  __device__ __forceinline__ void compute_each() const {
    const int before = static_cast<int>(lrn.size) / 2;
    const int after = static_cast<int>(lrn.size) - 1 - before;
    for (int c = column.begin; c < column.end; ++c) {
      Lanes<4> direct{}, sum{};
      for (int f = c - after; f <= c + before; ++f) {
        if (!column.has(f)) continue;
        const Lanes<4> slope = gathered(f), value = column.read<4>(x, f);
        const Lanes<4> d = read_divisor(lrn, column, x, f);
#pragma unroll
        for (int l = 0; l < 4; ++l) {
          const Powers power = powers<false>(d.v[l], lrn.beta);
          const float scaled = lrn_direct(slope.v[l], power);
          if (f == c) direct.v[l] = scaled;
          sum.v[l] += lrn_term(scaled, value.v[l], power);
        }
      }
      const Lanes<4> value = column.read<4>(x, c);
      Lanes<4> results;
#pragma unroll
      for (int l = 0; l < 4; ++l) results.v[l] = result(direct.v[l], value.v[l], sum.v[l]);
      store(dx + column.first + c * column.step, results);
    }
  }

  // dy of channel f.
  __device__ __forceinline__ Lanes<4> gathered(int f) const {
    Lanes<4> slope{};
    for (int r = rows.first; r <= rows.last; ++r) {
      for (int s = columns.first; s <= columns.last; ++s) {
        const int64_t k = out.first + f * out.step + (r * pool.Q + s) * pool.lanes;
        const uint32_t winners = load4_bytes(argmax + k);
        const Lanes<4> value = load<4>(dp + k);
#pragma unroll
        for (int l = 0; l < 4; ++l)
          if ((winners >> (8 * l) & 0xffu) == position(r, s)) slope.v[l] += value.v[l];
      }
    }
    return slope;
  }
};

// kWalks: the windows are such that walk() is for them.
template <class T, bool kWalks>
__global__ void __launch_bounds__(kQuadThreads, 2) lrn_pool_backward_kernel(LrnShape lrn,
                                                                            PoolShape pool,
                                                                            LaneGrid grid,
                                                                            Cut cut,
                                                                            const T* dp,
                                                                            const uint8_t* argmax,
                                                                            const T* x,
                                                                            T* __restrict__ dx,
                                                                            bool relu) {
  begin_kernel();
  const LanePlace at = lane_place(grid);  // plane = segment of a group of an image block
  if (!at.inside) return;
  const Gradient<T> gradient(lrn, pool, cut, at, dp, argmax, x, dx, relu);
  if constexpr (!kWalks) {
    gradient.compute_each();
  } else {
    const bool one_row = gradient.rows.first >= gradient.rows.last;
    const bool one_column = gradient.columns.first >= gradient.columns.last;
    if (one_row && one_column)
      gradient.template walk<1, 1>();
    else if (one_row)
      gradient.template walk<1, 2>();
    else if (one_column)
      gradient.template walk<2, 1>();
    else
      gradient.template walk<2, 2>();
  }
}

// ---- launchers ----

void check(const char* op, const LrnShape& lrn, const PoolShape& pool) {
  require(lrn.N == pool.N && lrn.C == pool.C && lrn.H == pool.H && lrn.W == pool.W &&
              lrn.lanes == pool.lanes,
          op, ": both shapes must have the same N, C, H, W and lanes, got ", lrn.N, "x", lrn.C, "x",
          lrn.H, "x", lrn.W, " in ", lrn.lanes, " lanes and ", pool.N, "x", pool.C, "x", pool.H,
          "x", pool.W, " in ", pool.lanes, " lanes");
  check_pool(op, pool);
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
  check(op, lrn, pool);
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

void lrn_pool_backward(const LrnShape& lrn,
                       const PoolShape& pool,
                       Precision precision,
                       const void* dp,
                       const uint8_t* argmax,
                       const void* x,
                       void* dx,
                       bool relu,
                       Stream stream) {
  const char* op = "lrn_pool_backward";
  check(op, lrn, pool);
  require_aligned(op, argmax);
  const ChannelPlan plan = channel_plan(op, lrn, 4);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    const bool walks = lrn.size == kSize && takes_roots(lrn) && pool.size <= 2 * pool.stride;
    auto* kernel = walks ? lrn_pool_backward_kernel<T, true> : lrn_pool_backward_kernel<T, false>;
    launch(kernel, plan.grid.grid(), plan.grid.block(), 0, stream, lrn, pool, plan.grid, plan.cut,
           static_cast<const T*>(dp), argmax, static_cast<const T*>(x), static_cast<T*>(dx), relu);
  });
}

}  // namespace convnet
