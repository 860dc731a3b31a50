// The max-pool of a local response normalisation, backward.
//
// What       dx from dp, x and argmax: dy gathers the windows that a pixel won, in row order, then dx_i =
//            dy_i d_i^-beta - 2 alpha beta x_i * sum of t_f over the f whose window holds i, t_f = dy_f
//            x_f d_f^(-beta-1), and 0 where x_i is no positive output of a ReLU. lrn.cu and maxpool.cu
//            say the rest; dy and d exist in registers alone.
// Tensors    x, dx [N/L][C][H][W][L], dp [N/L][C][P][Q][L] by precision, argmax uint8 as dp. dy is not
//            rounded.
// Work       a block computes a tile of pixels: 4x4 for 64 lanes, more for fewer. A thread walks the
//            channels at one pixel, four lanes of it; x and the sums move through its registers. dp and
//            argmax of the windows that hold a pixel of the tile are fetched once for all that need
//            them, five channels in a turn while the last five are computed. Pixels of even and odd rows
//            and columns fill warps of their own: where windows of 3 lie 2 apart they are in 1, 2 or 4
//            windows, and a warp goes through as many. Segments of groups as in lrn.cu. Windows of other
//            than five channels, and pooling windows wider than two strides, than 11, or too many for
//            the threads of a block to fetch, go through plain loops that read again what the walks
//            keep.
// Shared     dp and argmax of 256 times four lanes in two turns, 51200 bytes (30720 in bf16).
// Barriers   one per turn, behind the wait of every thread for its copies: this turn's windows are there,
//            and those of the last one, where the next ones go, are no longer read.
// Needs      what lrn.cu and maxpool.cu need, and one N, C, H, W and lanes.
// Cost       8 HW + 5 PQ bytes per image and channel (4 HW + 3 PQ in bf16): bound by memory in fp32. In
//            bf16 the issue of about 35 instructions per value takes longer than the memory does.
#include "lrn_pool_backward.hpp"

#include <type_traits>

#include "arch/arch.cuh"
#include "tile/channels.cuh"
#include "tile/pool_windows.cuh"

namespace convnet {
namespace {

constexpr int kSize = 5;  // channels of the window that a walk keeps in registers
constexpr int kBefore = kSize / 2;
constexpr int kTurn = kSize;  // so many channels later all is in the registers where it was
constexpr int kLogThreads = 8, kThreads = 1 << kLogThreads;
constexpr int kMostPool = 11;  // its positions are less than 127

// What a block fetches of the windows that hold a pixel of its tile: four lanes of one in each place.
template <class T>
struct Windows {
  Packed<T> dp[kThreads];
  uint32_t winners[kThreads];
};

// Of one turn while the next one is under way.
template <class T>
struct Turns {
  Windows<T> halves[2][kTurn];
};

// Where a pixel, `row` and `col` in the padded image, lies in window (r, s), as argmax counts.
__device__ __forceinline__ uint32_t
position(const PoolShape& pool, int row, int col, int r, int s) {
  const int size = static_cast<int>(pool.size), stride = static_cast<int>(pool.stride);
  return static_cast<uint32_t>((row - r * stride) * size + col - s * stride);
}

// The way over the channels at one pixel, four lanes of it. At channel c the newest term t_f is that of
// f = c + kBefore, whose window begins at c: the three rings move together.
template <class T, bool kRelu>
class Walk {
 public:
  // The first channel of the walk: the terms of the first output begin there; there are none in front of
  // the group.
  static __device__ __forceinline__ int start(const Column& column) {
    return column.begin > 0 ? column.begin - (kSize - 1) : -kBefore;
  }

  // A pixel that does not exist reads zeros and stores nothing.
  __device__ __forceinline__
  Walk(const LrnShape& lrn, const Column& column, bool exists, const T* x, T* dx)
      : lrn_(lrn),
        step_(static_cast<uint32_t>(column.step)),
        x_end_(!exists ? 0 : min(column.channels, column.end + kSize - 1)),
        begin_(column.begin),
        outputs_(exists ? column.end - column.begin : 0) {
    const int first = start(column);
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      x_[j] = Packed<T>{};
      if (j < kSize - 1 && first + j >= 0 && first + j < x_end_)
        x_[j] = load_packed(x + column.first + (first + j) * column.step);
      window_[j] = lanes_of(unpack4(x_[j]));
      terms_[j] = direct_[j] = Lanes<4>{};
    }
    next_x_ = x + column.first + (first + kSize - 1) * column.step;
    target_ = dx + column.first + first * column.step;
    next_ = read(first);
  }

  // Channels c to c + kTurn - 1 of a pixel in at most kRows x kColumns pooling windows, which lie at
  // `at` of what has been fetched. `places`: position() in all four bytes.
  template <int kRows, int kColumns>
  __device__ __forceinline__ void turn(int c,
                                       const Windows<T> (&fetched)[kTurn],
                                       const int (&at)[2][2],
                                       const uint32_t (&places)[2][2]) {
#pragma unroll
    for (int u = 0; u < kTurn; ++u) {
      x_[(u + kSize - 1) % kSize] = next_;
      window_[(u + kSize - 1) % kSize] = lanes_of(unpack4(next_));
      next_ = read(c + u + 1);
      Lanes<4> slope = lanes_of(unpack4(
          keep_where_equal(fetched[u].dp[at[0][0]], fetched[u].winners[at[0][0]], places[0][0])));
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int s = r == 0; s < kColumns; ++s) {
          const Lanes<4> value = lanes_of(unpack4(fetched[u].dp[at[r][s]]));
          const uint32_t differs = fetched[u].winners[at[r][s]] ^ places[r][s];
#pragma unroll
          for (int l = 0; l < 4; ++l)
            if ((differs & 0xffu << (8 * l)) == 0) slope.v[l] += value.v[l];
        }
      }
      Lanes<4> results;
#pragma unroll
      for (int l = 0; l < 4; ++l) {
        const Powers power = powers<true>(ring_divisor(lrn_, window_, u, l), lrn_.beta);
        const float scaled = lrn_direct(slope.v[l], power);
        direct_[(u + kBefore) % kSize].v[l] = scaled;
        terms_[(u + kSize - 1) % kSize].v[l] =
            lrn_term(scaled, window_[(u + kBefore) % kSize].v[l], power);
        float sum = terms_[u].v[l];
#pragma unroll
        for (int j = 1; j < kSize; ++j) sum += terms_[(u + j) % kSize].v[l];
        results.v[l] = lrn_slope(lrn_, direct_[u].v[l], window_[u].v[l], sum);
      }
      Packed<T> packed;
      pack4(float4{results.v[0], results.v[1], results.v[2], results.v[3]}, packed);
      if (kRelu) packed = keep_where_positive(packed, x_[u]);
      if (static_cast<uint32_t>(c + u - begin_) < outputs_) store_packed(target_, packed);
      target_ += step_;
    }
  }

 private:
  // The last value of the window that begins at channel c, the next one each time; zeros outside of the
  // group, and nothing where no output needs it.
  __device__ __forceinline__ Packed<T> read(int c) {
    const Packed<T> values = c + kSize - 1 < x_end_ ? load_packed(next_x_) : Packed<T>{};
    next_x_ += step_;
    return values;
  }

  const LrnShape& lrn_;
  Lanes<4> window_[kSize], terms_[kSize], direct_[kSize];
  Packed<T> x_[kSize], next_;  // x_: what window_ is made of
  const T* next_x_;            // what is to be read next
  T* target_;                  // what is to be written next
  uint32_t step_;              // to the next channel; launches that need more bits are refused
  int x_end_, begin_;
  uint32_t outputs_;
};

// A block's share of the image, in padded coordinates. What is a power of two is kept as its logarithm.
struct Tiling {
  int log_rows, log_columns;        // pixels of a tile, 4 rows and columns at least
  int down, across;                 // tiles of an image
  int window_rows, window_columns;  // that hold a pixel of a tile, at most
  int log_units, slices;            // quads of lanes of a block; blocks that share a pixel's lanes
  int x_step, p_step;               // values of a channel
};

// For windows of kSize channels, and pooling windows of which at most two along an axis hold a pixel.
template <class T, bool kRelu>
__global__ void __launch_bounds__(kThreads, 2) lrn_pool_backward_kernel(LrnShape lrn,
                                                                        PoolShape pool,
                                                                        Tiling tiling,
                                                                        Cut cut,
                                                                        const T* dp,
                                                                        const uint8_t* argmax,
                                                                        const T* x,
                                                                        T* __restrict__ dx) {
  begin_kernel();
  Turns<T>& shared = shared_storage<Turns<T>>();
  const int thread = static_cast<int>(threadIdx.x);
  const int H = static_cast<int>(pool.H), W = static_cast<int>(pool.W);
  const int P = static_cast<int>(pool.P), Q = static_cast<int>(pool.Q);
  const int lanes = static_cast<int>(pool.lanes);

  int segment = static_cast<int>(blockIdx.x), slice = 0;  // counted through all image blocks
  if (tiling.slices > 1) {
    segment /= tiling.slices;
    slice = static_cast<int>(blockIdx.x) - segment * tiling.slices;
  }
  const int top = static_cast<int>(blockIdx.y) << tiling.log_rows;
  const int left = static_cast<int>(blockIdx.z) << tiling.log_columns;
  const int units = 1 << tiling.log_units, unit = thread & (units - 1);
  const int slot = thread >> tiling.log_units;
  const int lane = 4 * (slice * units + unit);
  const int first_r = Covering(top, pool, pool.P).first;
  const int first_s = Covering(left, pool, pool.Q).first;

  // What this thread computes: a pixel, those of even rows and columns first.
  const int log_quarter = tiling.log_rows + tiling.log_columns - 2;
  const int kind = slot >> log_quarter, k = slot & ((1 << log_quarter) - 1);
  const int k_row = k >> (tiling.log_columns - 1), k_col = k - (k_row << (tiling.log_columns - 1));
  const int row = top + 2 * k_row + (kind >> 1), col = left + 2 * k_col + (kind & 1);
  const int h = row - static_cast<int>(pool.pad_top), w = col - static_cast<int>(pool.pad_left);
  const bool exists = h >= 0 && h < H && w >= 0 && w < W;
  const Column column =
      column_of(cut, segment, tiling.x_step, exists ? (h * W + w) * lanes + lane : lane);
  const Covering rows(row, pool, pool.P), columns(col, pool, pool.Q);
  // A window that does not exist is read in the place of another one; no maximum lies at 127.
  int at[2][2];
  uint32_t places[2][2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int r = rows.first + i, s = columns.first + j;
      const bool holds = exists && r <= rows.last && s <= columns.last;
      at[i][j] =
          holds ? ((r - first_r) * tiling.window_columns + s - first_s) * units + unit : unit;
      places[i][j] = holds ? position(pool, row, col, r, s) * 0x01010101u : 0x7f7f7f7fu;
    }
  }
  // A warp keeps together: it does for all pixels what one of them needs.
  const int down = warp_max(!exists ? 0 : rows.first < rows.last ? 2 : 1);
  const int across = warp_max(columns.first < columns.last ? 2 : 1);

  // What it fetches: four lanes of a window; zeros of one that does not exist.
  const int window_row =
      static_cast<int>(static_cast<uint32_t>(slot) / static_cast<uint32_t>(tiling.window_columns));
  const int r = first_r + window_row;
  const int s = first_s + slot - window_row * tiling.window_columns;
  const bool window_exists = r < P && s < Q;
  const Column out =
      column_of(cut, segment, tiling.p_step, window_exists ? (r * Q + s) * lanes + lane : lane);
  const int start = Walk<T, kRelu>::start(column);
  int64_t source = out.first + (start + kBefore) * out.step;
  const auto out_step = static_cast<uint32_t>(out.step);
  const int fetched_end = window_exists ? out.channels - kBefore : -kBefore;
  const auto fetch = [&](int c, Windows<T>(&half)[kTurn]) {
    if (window_row >= tiling.window_rows) return;
#pragma unroll
    for (int u = 0; u < kTurn; ++u) {
      const bool there = c + u < fetched_end;
      const int64_t from = source + static_cast<int64_t>(uint64_t{out_step} * u);
      copy_async<sizeof(Packed<T>)>(&half[u].dp[thread], dp + from, there);
      copy_async<4>(&half[u].winners[thread], argmax + from, there);
    }
    source += kTurn * out.step;
  };

  fetch(start, shared.halves[0]);
  copy_async_commit();
  Walk<T, kRelu> walk(lrn, column, exists, x, dx);
  int half = 0;
#pragma unroll 1
  for (int c = start; c < column.end; c += kTurn) {
    copy_async_wait<0>();
    __syncthreads();  // this turn's windows are there, and everybody has done with the last ones
    if (c + kTurn < column.end) fetch(c + kTurn, shared.halves[1 - half]);
    copy_async_commit();
    const auto& fetched = shared.halves[half];
    if (down == 2 && across == 2)
      walk.template turn<2, 2>(c, fetched, at, places);
    else if (down == 2)
      walk.template turn<2, 1>(c, fetched, at, places);
    else if (down == 1 && across == 2)
      walk.template turn<1, 2>(c, fetched, at, places);
    else if (down == 1)
      walk.template turn<1, 1>(c, fetched, at, places);
    half = 1 - half;
  }
}

// For any windows: every term is computed again for each channel that it belongs to.
template <class T, bool kRelu>
__global__ void __launch_bounds__(kQuadThreads, 2)
    lrn_pool_backward_each_kernel(LrnShape lrn,
                                  PoolShape pool,
                                  LaneGrid grid,
                                  Cut cut,
                                  const T* dp,
                                  const uint8_t* argmax,
                                  const T* x,
                                  T* __restrict__ dx) {
  begin_kernel();
  const LanePlace at = lane_place(grid);  // plane = segment of a group of an image block
  if (!at.inside) return;
  const int h = at.pixel / static_cast<int>(pool.W), w = at.pixel - h * static_cast<int>(pool.W);
  const int row = h + static_cast<int>(pool.pad_top), col = w + static_cast<int>(pool.pad_left);
  const Covering rows(row, pool, pool.P), columns(col, pool, pool.Q);
  const Column column = column_of(cut, at.plane, pool.H * pool.W * pool.lanes,
                                  int64_t{at.pixel} * pool.lanes + at.lane);
  const Column out = column_of(cut, at.plane, pool.P * pool.Q * pool.lanes, at.lane);
  const auto gathered = [&](int f) {  // dy of channel f
    Lanes<4> slope{};
    for (int r = rows.first; r <= rows.last; ++r) {
      for (int s = columns.first; s <= columns.last; ++s) {
        const int64_t k = out.first + f * out.step + (r * pool.Q + s) * pool.lanes;
        const uint32_t winners = load4_bytes(argmax + k);
        const Lanes<4> value = load<4>(dp + k);
#pragma unroll
        for (int l = 0; l < 4; ++l)
          if ((winners >> (8 * l) & 0xffu) == position(pool, row, col, r, s))
            slope.v[l] += value.v[l];
      }
    }
    return slope;
  };
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
    for (int l = 0; l < 4; ++l)
      results.v[l] =
          !kRelu || value.v[l] > 0.0f ? lrn_slope(lrn, direct.v[l], value.v[l], sum.v[l]) : 0.0f;
    store(dx + column.first + c * column.step, results);
  }
}

// As many lanes as lie side by side, up to 64, so that lines of memory are read as a whole; pixels for
// the rest of the threads. Even numbers of rows and columns, a power of two each.
Tiling tiling_for(const PoolShape& pool) {
  Tiling tiling{};
  tiling.log_units = 4;
  while (pool.lanes / 4 % (1 << tiling.log_units)) --tiling.log_units;
  tiling.slices = static_cast<int>(pool.lanes / 4 >> tiling.log_units);
  tiling.log_rows = tiling.log_units >= 3 ? 2 : 3;
  tiling.log_columns = kLogThreads - tiling.log_units - tiling.log_rows;
  const auto windows = [&](int log_pixels) {
    return static_cast<int>(((1 << log_pixels) + pool.size - 2) / pool.stride + 1);
  };
  tiling.window_rows = windows(tiling.log_rows);
  tiling.window_columns = windows(tiling.log_columns);
  tiling.down = static_cast<int>(((pool.H + pool.pad_top - 1) >> tiling.log_rows) + 1);
  tiling.across = static_cast<int>(((pool.W + pool.pad_left - 1) >> tiling.log_columns) + 1);
  tiling.x_step = static_cast<int>(pool.H * pool.W * pool.lanes);
  tiling.p_step = static_cast<int>(pool.P * pool.Q * pool.lanes);
  return tiling;
}

}  // namespace

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
  check_lrn_pool(op, lrn, pool);
  require_aligned(op, argmax);
  const int64_t planes = image_blocks(op, lrn.N, lrn.lanes) * lrn.groups;
  require(kTurn * pool.H * pool.W * pool.lanes <= kMaxGrid &&
              kTurn * pool.P * pool.Q * pool.lanes <= kMaxGrid,
          op, ": an image of ", lrn.H, "x", lrn.W, " in ", lrn.lanes,
          " lanes is too large for 32-bit indices; use fewer lanes");
  const Tiling tiling = tiling_for(pool);
  const bool walks = lrn.size == kSize && takes_roots(lrn) && pool.size <= 2 * pool.stride &&
                     pool.size <= kMostPool &&
                     (tiling.window_rows * tiling.window_columns << tiling.log_units) <= kThreads;
  const int64_t tiles = int64_t{tiling.down} * tiling.across * tiling.slices;
  const Cut cut = cut_channels(op, lrn, planes * tiles * kThreads);
  require(planes * cut.segments * tiling.slices <= kMaxGrid && tiling.down <= 65535 &&
              tiling.across <= 65535,
          op, ": ", lrn.N, "x", lrn.C, "x", lrn.H, "x", lrn.W,
          " is too large for one launch; use a smaller batch");
  const Dim3 blocks(static_cast<unsigned>(planes * cut.segments * tiling.slices),
                    static_cast<unsigned>(tiling.down), static_cast<unsigned>(tiling.across));
  const ChannelPlan plan = channel_plan(op, lrn, 4);
  const auto start = [&](auto element, auto masked) {
    using T = decltype(element);
    const auto* dp_ = static_cast<const T*>(dp);
    const auto* x_ = static_cast<const T*>(x);
    if (walks)
      launch(lrn_pool_backward_kernel<T, masked.value>, blocks, Dim3(kThreads), sizeof(Turns<T>),
             stream, lrn, pool, tiling, cut, dp_, argmax, x_, static_cast<T*>(dx));
    else
      launch(lrn_pool_backward_each_kernel<T, masked.value>, plan.grid.grid(), plan.grid.block(), 0,
             stream, lrn, pool, plan.grid, plan.cut, dp_, argmax, x_, static_cast<T*>(dx));
  };
  with_element(precision, [&](auto element) {
    if (relu)
      start(element, std::true_type{});
    else
      start(element, std::false_type{});
  });
}

}  // namespace convnet
