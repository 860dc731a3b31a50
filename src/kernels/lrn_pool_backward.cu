// The max-pool of a local response normalisation, backward.
//
// What       dx from dp, x and argmax: dy gathers the windows that a pixel won, in row order, then dx_i =
//            dy_i d_i^-beta - 2 alpha beta x_i * sum of t_f over the f whose window holds i, t_f = dy_f
//            x_f d_f^(-beta-1), and 0 where x_i is no positive output of a ReLU. lrn.cu and maxpool.cu
//            say the rest; dy and d exist in registers alone.
// Tensors    x, dx [N/L][C][H][W][L], dp [N/L][C][P][Q][L] by precision, argmax uint8 as dp. dy is not
//            rounded.
// Work       a thread walks the channels at one pixel, four lanes of it; x, the pixel's windows and the
//            sums move through its registers, and windows that neighbours share meet in the L1 and L2
//            caches. Threads whose pixels lie in equally many windows (1, 2 or 4) stand side by side,
//            even columns first, and each number has a walk of its own. Segments of groups as in
//            lrn.cu. Windows of other than five channels, and pooling windows wider than two strides,
//            go through plain loops that read again what the walks keep.
// Shared     none.
// Barriers   none.
// Needs      what lrn.cu and maxpool.cu need, and one N, C, H, W and lanes.
// Cost       8 HW + 5 PQ bytes per image and channel (4 HW + 3 PQ in bf16): bound by memory in fp32. In
//            bf16 the issue of about 43 instructions per value takes longer than the memory does.
#include "lrn_pool_backward.hpp"

#include "arch/arch.cuh"
#include "tile/channels.cuh"
#include "tile/pool_windows.cuh"

namespace convnet {
namespace {

constexpr int kSize = 5;  // channels of the window that a walk keeps in registers
constexpr int kBefore = kSize / 2;

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
