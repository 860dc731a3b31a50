// Local response normalisation as a walk over the channels of a group: which of them a thread walks,
// how it reads them, and the powers of the divisor. lrn.cu and lrn_pool_*.cu compute with the
// same expressions, so that they give the same bits.
#pragma once
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "quads.cuh"

namespace convnet {

constexpr int kMaxLrnSize = 16;
constexpr int64_t kLrnThreadsWanted = 1 << 17;  // about what an H100 keeps resident
constexpr int64_t kMinSegment = 16;  // channels; below it re-reading outweighs the parallelism

// Neighbouring image lanes of one thread.
template <int kLanes>
struct Lanes {
  float v[kLanes];
};

__device__ __forceinline__ Lanes<4> lanes_of(float4 quad) {
  return {{quad.x, quad.y, quad.z, quad.w}};
}

template <int kLanes, class T>
__device__ __forceinline__ Lanes<kLanes> load(const T* address) {
  if constexpr (kLanes == 4) {
    return lanes_of(load4(address));
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

// How the channels of a group are cut up.
struct Cut {
  int channels, segment, segments;  // of a group, of a segment, per group
};

// Throws where the shape is none. `threads` walk whole groups; where they are too few to fill a
// device, groups are cut. Results do not depend on the cut.
inline Cut cut_channels(const char* op, const LrnShape& shape, int64_t threads) {
  require(shape.size >= 1 && shape.size <= kMaxLrnSize, op, ": size must be 1 to ", kMaxLrnSize,
          " channels, got size=", shape.size);
  require(shape.groups >= 1 && shape.C >= 1 && shape.C <= kMaxGrid && shape.C % shape.groups == 0,
          op, ": groups must divide the channels, got C=", shape.C, " groups=", shape.groups);
  const int64_t channels = shape.C / shape.groups;
  const int64_t cuts = std::max<int64_t>(
      1, std::min(kLrnThreadsWanted / std::max<int64_t>(1, threads), channels / kMinSegment));
  const int64_t segment = (channels + cuts - 1) / cuts;
  const int64_t segments = (channels + segment - 1) / segment;
  return Cut{static_cast<int>(channels), static_cast<int>(segment), static_cast<int>(segments)};
}

// One thread per `width` lanes of a pixel walks a segment: the plane of a LanePlace is a segment of a
// group of an image block.
struct ChannelPlan {
  LaneGrid grid;
  Cut cut;
};

inline ChannelPlan channel_plan(const char* op, const LrnShape& shape, int width) {
  const int64_t planes = image_blocks(op, shape.N, shape.lanes) * shape.groups;
  const int64_t pixels = shape.H * shape.W;
  const Cut cut = cut_channels(op, shape, planes * pixels * (shape.lanes / width));
  return ChannelPlan{lane_grid(op, planes * cut.segments, pixels, shape.lanes, width), cut};
}

// Whether every divisor is a normal number and the power one that takes two roots.
inline bool takes_roots(const LrnShape& shape) {
  return shape.beta == 0.75f && shape.alpha >= 0.0f && shape.k >= FLT_MIN;
}

// The channels that a thread walks: those of one group, of which it produces [begin, end).
struct Column {
  int64_t first;  // offset of the group's channel 0 at this thread's pixel and lane
  int64_t step;   // from one channel to the next
  int channels, begin, end;

  __device__ __forceinline__ bool has(int c) const { return c >= 0 && c < channels; }

  // Values of channel c; zero outside the group, which is what the sums want.
  template <int kLanes, class T>
  __device__ __forceinline__ Lanes<kLanes> read(const T* tensor, int c) const {
    return has(c) ? load<kLanes>(tensor + first + c * step) : Lanes<kLanes>{};
  }
};

// `segment` counts through the groups of all image blocks; `place` is an offset within a channel of
// `step` values.
__device__ __forceinline__ Column column_of(const Cut& cut,
                                            int64_t segment,
                                            int64_t step,
                                            int64_t place) {
  const int group = static_cast<int>(segment) / cut.segments;
  const int begin = (static_cast<int>(segment) - group * cut.segments) * cut.segment;
  const int end = cut.channels - begin < cut.segment ? cut.channels : begin + cut.segment;
  return Column{int64_t{group} * cut.channels * step + place, step, cut.channels, begin, end};
}

// d^-beta and 1 / d.
struct Powers {
  float denominator, inverse;
};

// kRoots: takes_roots(shape). The others look at beta, so that 0.75 means the same roots with every
// window. They are reciprocal roots because sqrtf and division, rounded exactly, take several times
// as many instructions and would outlast the memory; the power is within 6 units in the last place.
template <bool kRoots>
__device__ __forceinline__ Powers powers(float d, float beta) {
  if constexpr (kRoots) {
    const float root = rsqrt_normal(d);
    return Powers{root * rsqrt_normal(d * root), root * root};
  }
  if (beta == 0.75f) {
    const float root = rsqrtf(d);
    return Powers{root * rsqrtf(d * root), root * root};
  }
  return Powers{powf(d, -beta), 1.0f / d};
}

// What follows is spelled out operation by operation: left alone, a compiler contracts products into
// sums as it sees fit, which is not the same in every kernel.

// k + alpha * sum of x^2 over the kSize values of a window, x(0) to x(kSize - 1).
template <int kSize, class Values>
__device__ __forceinline__ float divisor(const LrnShape& shape, Values x) {
  float sum = mul_rn(x(0), x(0));
#pragma unroll
  for (int j = 1; j < kSize; ++j) sum = fma_rn(x(j), x(j), sum);
  return fma_rn(shape.alpha, sum, shape.k);
}

// The divisor of one lane whose window lies in a ring, the first channel in slot `first`.
template <int kSize>
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

// dy d^-beta, and the term t = dy x d^(-beta-1) that follows from it; never -0, so that a sum of terms
// may begin with one.
__device__ __forceinline__ float lrn_direct(float slope, const Powers& power) {
  return mul_rn(slope, power.denominator);
}

__device__ __forceinline__ float lrn_term(float direct, float x, const Powers& power) {
  return fma_rn(mul_rn(direct, x), power.inverse, 0.0f);
}

// dx from dy d^-beta, x and the sum of the terms.
__device__ __forceinline__ float lrn_slope(const LrnShape& shape,
                                           float direct,
                                           float x,
                                           float sum) {
  return fma_rn(-2.0f * shape.alpha * shape.beta * x, sum, direct);
}

}  // namespace convnet
