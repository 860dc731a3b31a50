// Local response normalisation across channels.
//
// What       forward y_i = x_i d_i^-beta with d_i = k + alpha * sum of x_j^2 over j in window(i) =
//            [i - size/2, i - size/2 + size), clipped to i's group. Backward dx_i = dy_i d_i^-beta
//            - 2 alpha beta x_i * sum of t_f over the f whose window holds i, t_f = dy_f x_f
//            d_f^(-beta-1); d is computed again from x, so that forward has nothing to keep.
// Tensors    x, y, dy, dx [N/L][C][H][W][L] by precision. Windows and sums are float32.
// Work       one thread per four neighbouring lanes of a pixel (one lane where size > 5), up to 256
//            threads per block, walks the channels of a group with the window in registers. The
//            window is summed anew at every channel: a sum that adds what enters and subtracts what
//            leaves would drift. Where pixels and images are too few to fill a device, a group is
//            cut into segments that read their neighbours' channels again; results do not depend on
//            the cut.
// Shared     none.
// Barriers   none.
// Needs      lanes a multiple of 8, 1 <= size <= 16 (it may exceed C), 16-byte aligned arrays; y is
//            not x, dx neither dy nor x.
// Cost       8 bytes per value forward, 12 backward (half of it in bf16), and 2 (size - 1) /
//            segment more reading where a group is cut; about 25 and 45 operations per value at
//            size 5: bound by memory. beta = 0.75 takes two reciprocal square roots, another beta
//            powf.
#include "lrn.hpp"

#include "arch/arch.cuh"
#include "tile/channels.cuh"

namespace convnet {
namespace {

// One turn of the loop reads kTurn channels ahead, so that several loads are under way at a time.
template <class T, int kSize, int kLanes, int kTurn, bool kRoots>
__global__ void __launch_bounds__(kQuadThreads)
    lrn_forward_kernel(LrnShape shape, LaneGrid grid, Cut cut, const T* x, T* __restrict__ y) {
  begin_kernel();
  constexpr int kBefore = kSize / 2, kAfter = kSize - 1 - kBefore;
  const LanePlace at = lane_place(grid);  // plane = segment of a group of an image block
  if (!at.inside) return;
  const Column column = column_of(cut, at.plane, int64_t{grid.pixels} * shape.lanes,
                                  at.pixel * shape.lanes + at.lane);

  Lanes<kLanes> window[kSize - 1 + kTurn];  // x of channels c - kBefore and on
#pragma unroll
  for (int j = 0; j < kSize - 1; ++j)
    window[j] = column.read<kLanes>(x, column.begin - kBefore + j);

#pragma unroll 1
  for (int c = column.begin; c < column.end; c += kTurn) {
#pragma unroll
    for (int u = 0; u < kTurn; ++u) window[kSize - 1 + u] = column.read<kLanes>(x, c + u + kAfter);
#pragma unroll
    for (int u = 0; u < kTurn; ++u) {
      if (c + u >= column.end) break;
      Lanes<kLanes> result;
#pragma unroll
      for (int l = 0; l < kLanes; ++l) {
        const float d = divisor<kSize>(shape, [&](int j) { return window[u + j].v[l]; });
        result.v[l] = window[u + kBefore].v[l] * powers<kRoots>(d, shape.beta).denominator;
      }
      store(y + column.first + (c + u) * column.step, result);
    }
#pragma unroll
    for (int j = 0; j < kSize - 1; ++j) window[j] = window[j + kTurn];
  }
}

// At channel c the newest term t_f is that of f = c + kBefore, whose window begins at c: the three
// rings below move together.
template <class T, int kSize, int kLanes, int kTurn, bool kRoots>
__global__ void __launch_bounds__(kQuadThreads, 2) lrn_backward_kernel(
    LrnShape shape, LaneGrid grid, Cut cut, const T* dy, const T* x, T* __restrict__ dx) {
  begin_kernel();
  constexpr int kBefore = kSize / 2;
  const LanePlace at = lane_place(grid);  // plane = segment of a group of an image block
  if (!at.inside) return;
  const Column column = column_of(cut, at.plane, int64_t{grid.pixels} * shape.lanes,
                                  at.pixel * shape.lanes + at.lane);

  Lanes<kLanes> window[kSize - 1 + kTurn];       // x of channels c and on
  Lanes<kLanes> terms[kSize - 1 + kTurn];        // t of the kSize channels up to c + kBefore
  Lanes<kLanes> direct[kBefore + kTurn];         // dy d^-beta of channels c to c + kBefore
  const int start = column.begin - (kSize - 1);  // the terms of the first output begin here
#pragma unroll
  for (int j = 0; j < kSize - 1; ++j) {
    window[j] = column.read<kLanes>(x, start + j);
    terms[j] = Lanes<kLanes>{};
  }
#pragma unroll
  for (int j = 0; j < kBefore; ++j) direct[j] = Lanes<kLanes>{};

#pragma unroll 1
  for (int c = start; c < column.end; c += kTurn) {
    Lanes<kLanes> slope[kTurn];
#pragma unroll
    for (int u = 0; u < kTurn; ++u) {
      window[kSize - 1 + u] = column.read<kLanes>(x, c + u + kSize - 1);
      slope[u] = column.read<kLanes>(dy, c + u + kBefore);
    }
#pragma unroll
    for (int u = 0; u < kTurn; ++u) {
      const int f = c + u + kBefore;
      const bool exists = f >= 0 && f < column.channels;
      Lanes<kLanes> result;
#pragma unroll
      for (int l = 0; l < kLanes; ++l) {
        const float d = divisor<kSize>(shape, [&](int j) { return window[u + j].v[l]; });
        const Powers power = powers<kRoots>(d, shape.beta);
        const float scaled = lrn_direct(slope[u].v[l], power);
        direct[kBefore + u].v[l] = exists ? scaled : 0.0f;
        terms[kSize - 1 + u].v[l] =
            exists ? lrn_term(scaled, window[u + kBefore].v[l], power) : 0.0f;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < kSize; ++j) sum += terms[u + j].v[l];
        result.v[l] = lrn_slope(shape, direct[u].v[l], window[u].v[l], sum);
      }
      if (c + u >= column.begin && c + u < column.end)
        store(dx + column.first + (c + u) * column.step, result);
    }
#pragma unroll
    for (int j = 0; j < kSize - 1; ++j) {
      window[j] = window[j + kTurn];
      terms[j] = terms[j + kTurn];
    }
#pragma unroll
    for (int j = 0; j < kBefore; ++j) direct[j] = direct[j + kTurn];
  }
}

// Lanes per thread: sizes up to 5 move four values at a time; larger windows of that width would not
// fit in registers.
int width_of(const LrnShape& shape) { return shape.size <= 5 ? 4 : 1; }

// The network's window of 5 with beta 0.75 is compiled without the general power.
template <class T, int kSize = 1>
void launch_forward(
    const LrnShape& shape, const ChannelPlan& plan, const T* x, T* y, Stream stream) {
  if (shape.size == kSize) {
    auto *kernel = lrn_forward_kernel < T, kSize, kSize <= 5 ? 4 : 1, 4, false > ;
    if constexpr (kSize == 5)
      if (takes_roots(shape)) kernel = lrn_forward_kernel<T, 5, 4, 4, true>;
    launch(kernel, plan.grid.grid(), plan.grid.block(), 0, stream, shape, plan.grid, plan.cut, x,
           y);
  } else if constexpr (kSize < kMaxLrnSize) {
    launch_forward<T, kSize + 1>(shape, plan, x, y, stream);
  }
}

template <class T, int kSize = 1>
void launch_backward(
    const LrnShape& shape, const ChannelPlan& plan, const T* dy, const T* x, T* dx, Stream stream) {
  if (shape.size == kSize) {
    auto *kernel = lrn_backward_kernel < T, kSize, kSize <= 5 ? 4 : 1, 2, false > ;
    if constexpr (kSize == 5)
      if (takes_roots(shape)) kernel = lrn_backward_kernel<T, 5, 4, 2, true>;
    launch(kernel, plan.grid.grid(), plan.grid.block(), 0, stream, shape, plan.grid, plan.cut, dy,
           x, dx);
  } else if constexpr (kSize < kMaxLrnSize) {
    launch_backward<T, kSize + 1>(shape, plan, dy, x, dx, stream);
  }
}

}  // namespace

void lrn_forward(
    const LrnShape& shape, Precision precision, const void* x, void* y, Stream stream) {
  const ChannelPlan plan = channel_plan("lrn_forward", shape, width_of(shape));
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch_forward(shape, plan, static_cast<const T*>(x), static_cast<T*>(y), stream);
  });
}

void lrn_backward(const LrnShape& shape,
                  Precision precision,
                  const void* dy,
                  const void* x,
                  void* dx,
                  Stream stream) {
  const ChannelPlan plan = channel_plan("lrn_backward", shape, width_of(shape));
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch_backward(shape, plan, static_cast<const T*>(dy), static_cast<const T*>(x),
                    static_cast<T*>(dx), stream);
  });
}

}  // namespace convnet
