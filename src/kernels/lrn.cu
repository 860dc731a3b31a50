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

#include <algorithm>
#include <cmath>

#include "arch/arch.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

constexpr int kMaxSize = 16;
constexpr int64_t kThreadsWanted = 1 << 17;  // about what an H100 keeps resident
constexpr int64_t kMinSegment = 16;  // channels; below it re-reading outweighs the parallelism

// Neighbouring image lanes of one thread.
template <int kLanes>
struct Lanes {
  float v[kLanes];
};

template <int kLanes, class T>
__device__ __forceinline__ Lanes<kLanes> load(const T* address) {
  if constexpr (kLanes == 4) {
    const float4 quad = load4(address);
    return {{quad.x, quad.y, quad.z, quad.w}};
  } else {
    return {{load1(address)}};
  }
}

template <int kLanes, class T>
__device__ __forceinline__ void store(T* address, const Lanes<kLanes>& lanes) {
  if constexpr (kLanes == 4)
    store4(address, float4{lanes.v[0], lanes.v[1], lanes.v[2], lanes.v[3]});
  else
    store1(address, lanes.v[0]);
}

// The channels that a thread walks: those of one group, of which it produces [begin, end).
struct Column {
  int64_t first;  // offset of the group's channel 0 at this thread's pixel and lane
  int64_t step;   // from one channel to the next
  int channels, begin, end;

  // Values of channel c; zero outside the group, which is what the sums want.
  template <int kLanes, class T>
  __device__ __forceinline__ Lanes<kLanes> read(const T* tensor, int c) const {
    return c >= 0 && c < channels ? load<kLanes>(tensor + first + c * step) : Lanes<kLanes>{};
  }
};

// How the channels of a group are cut up.
struct Cut {
  int channels, segment, segments;  // of a group, of a segment, per group
};

__device__ __forceinline__ Column column_of(const LrnShape& shape,
                                            const LaneGrid& grid,
                                            const Cut& cut,
                                            const LanePlace& at) {
  const int group = static_cast<int>(at.plane) / cut.segments;  // counted through all image blocks
  const int begin = (static_cast<int>(at.plane) - group * cut.segments) * cut.segment;
  const int end = cut.channels - begin < cut.segment ? cut.channels : begin + cut.segment;
  const int64_t step = grid.pixels * shape.lanes;
  const int64_t first = int64_t{group} * cut.channels * step + at.pixel * shape.lanes + at.lane;
  return Column{first, step, cut.channels, begin, end};
}

// d^-beta and 1 / d.
struct Powers {
  float denominator, inverse;
};

// kTuned: beta is 0.75. The others look, so that 0.75 means the same roots with every window. They
// are reciprocal roots because sqrtf and division, rounded exactly, take several times as many
// instructions and would outlast the memory; the power is within 6 units in the last place.
template <bool kTuned>
__device__ __forceinline__ Powers powers(float d, float beta) {
  if (kTuned || beta == 0.75f) {
    const float root = rsqrtf(d);
    return Powers{root * rsqrtf(d * root), root * root};
  }
  return Powers{powf(d, -beta), 1.0f / d};
}

// k + alpha * sum of squares of one lane over window[0..kSize)
template <int kSize, int kLanes>
__device__ __forceinline__ float divisor(const LrnShape& shape,
                                         const Lanes<kLanes>* window,
                                         int lane) {
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kSize; ++j) sum += window[j].v[lane] * window[j].v[lane];
  return shape.k + shape.alpha * sum;
}

// One turn of the loop reads kTurn channels ahead, so that several loads are under way at a time.
template <class T, int kSize, int kLanes, int kTurn, bool kTuned>
__global__ void __launch_bounds__(kQuadThreads) lrn_forward_kernel(
    LrnShape shape, LaneGrid grid, Cut cut, const T* __restrict__ x, T* __restrict__ y) {
  begin_kernel();
  constexpr int kBefore = kSize / 2, kAfter = kSize - 1 - kBefore;
  const LanePlace at = lane_place(grid);  // plane = segment of a group of an image block
  if (!at.inside) return;
  const Column column = column_of(shape, grid, cut, at);

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
        const float d = divisor<kSize>(shape, window + u, l);
        result.v[l] = window[u + kBefore].v[l] * powers<kTuned>(d, shape.beta).denominator;
      }
      store(y + column.first + (c + u) * column.step, result);
    }
#pragma unroll
    for (int j = 0; j < kSize - 1; ++j) window[j] = window[j + kTurn];
  }
}

// At channel c the newest term t_f is that of f = c + kBefore, whose window begins at c: the three
// rings below move together.
template <class T, int kSize, int kLanes, int kTurn, bool kTuned>
__global__ void __launch_bounds__(kQuadThreads, 2) lrn_backward_kernel(LrnShape shape,
                                                                       LaneGrid grid,
                                                                       Cut cut,
                                                                       const T* __restrict__ dy,
                                                                       const T* __restrict__ x,
                                                                       T* __restrict__ dx) {
  begin_kernel();
  constexpr int kBefore = kSize / 2;
  const LanePlace at = lane_place(grid);  // plane = segment of a group of an image block
  if (!at.inside) return;
  const Column column = column_of(shape, grid, cut, at);
  const float factor = 2.0f * shape.alpha * shape.beta;

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
        const Powers power = powers<kTuned>(divisor<kSize>(shape, window + u, l), shape.beta);
        const float scaled = slope[u].v[l] * power.denominator;
        direct[kBefore + u].v[l] = exists ? scaled : 0.0f;
        terms[kSize - 1 + u].v[l] =
            exists ? scaled * window[u + kBefore].v[l] * power.inverse : 0.0f;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < kSize; ++j) sum += terms[u + j].v[l];
        result.v[l] = direct[u].v[l] - factor * window[u].v[l] * sum;
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

struct Plan {
  LaneGrid grid;
  Cut cut;
};

Plan plan_for(const char* op, const LrnShape& shape) {
  require(shape.size >= 1 && shape.size <= kMaxSize, op, ": size must be 1 to ", kMaxSize,
          " channels, got size=", shape.size);
  require(shape.groups >= 1 && shape.C >= 1 && shape.C <= kMaxGrid && shape.C % shape.groups == 0,
          op, ": groups must divide the channels, got C=", shape.C, " groups=", shape.groups);
  const int64_t planes = image_blocks(op, shape.N, shape.lanes) * shape.groups;
  const int width = shape.size <= 5 ? 4 : 1;
  const int64_t pixels = shape.H * shape.W;
  const int64_t channels = shape.C / shape.groups;
  const int64_t threads = std::max<int64_t>(1, planes * pixels * (shape.lanes / width));
  const int64_t cuts =
      std::max<int64_t>(1, std::min(kThreadsWanted / threads, channels / kMinSegment));
  const int64_t segment = (channels + cuts - 1) / cuts;
  const int64_t segments = (channels + segment - 1) / segment;
  return Plan{
      lane_grid(op, planes * segments, pixels, shape.lanes, width),
      Cut{static_cast<int>(channels), static_cast<int>(segment), static_cast<int>(segments)}};
}

// Sizes up to 5 move four values at a time; larger windows of that width would not fit in
// registers. The network's window of 5 with beta 0.75 is compiled without the general power.
template <class T, int kSize = 1>
void launch_forward(const LrnShape& shape, const Plan& plan, const T* x, T* y, Stream stream) {
  if (shape.size == kSize) {
    auto *kernel = lrn_forward_kernel < T, kSize, kSize <= 5 ? 4 : 1, 4, false > ;
    if constexpr (kSize == 5)
      if (shape.beta == 0.75f) kernel = lrn_forward_kernel<T, 5, 4, 4, true>;
    launch(kernel, plan.grid.grid(), plan.grid.block(), 0, stream, shape, plan.grid, plan.cut, x,
           y);
  } else if constexpr (kSize < kMaxSize) {
    launch_forward<T, kSize + 1>(shape, plan, x, y, stream);
  }
}

template <class T, int kSize = 1>
void launch_backward(
    const LrnShape& shape, const Plan& plan, const T* dy, const T* x, T* dx, Stream stream) {
  if (shape.size == kSize) {
    auto *kernel = lrn_backward_kernel < T, kSize, kSize <= 5 ? 4 : 1, 2, false > ;
    if constexpr (kSize == 5)
      if (shape.beta == 0.75f) kernel = lrn_backward_kernel<T, 5, 4, 2, true>;
    launch(kernel, plan.grid.grid(), plan.grid.block(), 0, stream, shape, plan.grid, plan.cut, dy,
           x, dx);
  } else if constexpr (kSize < kMaxSize) {
    launch_backward<T, kSize + 1>(shape, plan, dy, x, dx, stream);
  }
}

}  // namespace

void lrn_forward(
    const LrnShape& shape, Precision precision, const void* x, void* y, Stream stream) {
  const Plan plan = plan_for("lrn_forward", shape);
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
  const Plan plan = plan_for("lrn_backward", shape);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch_backward(shape, plan, static_cast<const T*>(dy), static_cast<const T*>(x),
                    static_cast<T*>(dx), stream);
  });
}

}  // namespace convnet
