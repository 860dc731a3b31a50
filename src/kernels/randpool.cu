// Stochastic pooling.
//
// What       forward y = a value of the window, clipped to the image, drawn with probability
//            proportional to max(x, 0), and its position; mean y = what that gives on average
//            (randpool.hpp). Backward is that of max-pooling. The sum of the weights and the sum up to
//            each value are added in the same row order, so that the last one reaches the first.
// Tensors    x [N/L][C][H][W][L], y [N/L][C][P][Q][L] by precision, argmax uint8 as y; control: one
//            Control. Values are passed on as they are; means are float32, rounded once.
// Work       one thread per four neighbouring lanes of an output pixel, up to 256 threads per block; a
//            block stays inside one channel of one image block. The window is read twice, the second
//            time from the L1 cache.
// Shared     none.
// Barriers   none.
// Needs      lanes a multiple of 8, size <= 15, every window with a pixel in it; 16-byte aligned
//            activations, 4-byte aligned argmax.
// Cost       4 HW + 5 PQ bytes per image and channel (2 HW + 3 PQ in bf16), and about 80 integer
//            operations per value of y: bound by memory.
#include "randpool.hpp"

#include <cmath>

#include "arch/arch.cuh"
#include "tile/dropout.cuh"
#include "tile/pool_windows.cuh"

namespace convnet {
namespace {

// What a window has of the image: rows h0 to h1 - 1, columns w0 to w1 - 1.
struct Clip {
  int top, left, h0, h1, w0, w1;

  __device__ __forceinline__ Clip(const PoolShape& shape, int p, int q)
      : top(p * static_cast<int>(shape.stride) - static_cast<int>(shape.pad_top)),
        left(q * static_cast<int>(shape.stride) - static_cast<int>(shape.pad_left)),
        h0(top > 0 ? top : 0),
        h1(clamp(top + static_cast<int>(shape.size), 0, static_cast<int>(shape.H))),
        w0(left > 0 ? left : 0),
        w1(clamp(left + static_cast<int>(shape.size), 0, static_cast<int>(shape.W))) {}
};

// Of the values of a window in four lanes: their maximum, its position, and the sum of their weights.
struct Weighed {
  float best[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  int position[4];

  template <class T>
  __device__ __forceinline__ Weighed(const PoolShape& shape, const Clip& clip, const T* image) {
    const int size = static_cast<int>(shape.size);
    for (int l = 0; l < 4; ++l) position[l] = (clip.h0 - clip.top) * size + clip.w0 - clip.left;
    for (int h = clip.h0; h < clip.h1; ++h)
      for (int w = clip.w0; w < clip.w1; ++w) {
        const float4 quad = load4(image + (int64_t{h} * shape.W + w) * shape.lanes);
        const float value[4] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
        for (int l = 0; l < 4; ++l) {
          sum[l] = add_rn(sum[l], value[l] > 0.0f ? value[l] : 0.0f);
          // Larger, or NaN; a best that is NaN is not equal to itself and stays.
          if (best[l] == best[l] && !(value[l] <= best[l])) {
            best[l] = value[l];
            position[l] = (h - clip.top) * size + w - clip.left;
          }
        }
      }
  }

  // Whether there is something to be drawn.
  __device__ __forceinline__ bool open(int l) const { return best[l] > 0.0f; }
};

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
    rand_pool_forward_kernel(PoolShape shape,
                             LaneGrid grid,
                             Dropout draw,
                             const T* x,
                             T* __restrict__ y,
                             uint8_t* __restrict__ argmax) {
  begin_kernel();
  const LanePlace at = lane_place(grid);  // plane = channel of an image block, pixel = output pixel
  if (!at.inside) return;
  const int Q = static_cast<int>(shape.Q), p = at.pixel / Q, q = at.pixel - p * Q;
  const T* image = x + at.plane * shape.H * shape.W * shape.lanes + at.lane;
  const Clip clip(shape, p, q);
  const Weighed weighed(shape, clip, image);

  const int64_t block = at.plane / shape.C, c = at.plane - block * shape.C;
  const int64_t n = draw.control->first + block * shape.lanes + at.lane;
  const int64_t feature = c * grid.pixels + at.pixel;
  const uint32_t step = draw.control->step;
  float best[4], reached[4] = {0.0f, 0.0f, 0.0f, 0.0f}, wanted[4];
  int position[4];
  bool drawn[4];
#pragma unroll
  for (int l = 0; l < 4; ++l) {
    const int64_t element = (n + l) * draw.features_total + draw.feature_offset + feature;
    const PhiloxWords counter{{static_cast<uint32_t>(element), step, draw.layer, kPooling}};
    const float u = static_cast<float>((philox(counter, draw.seed).w[0] >> 8) + 1u) * 0x1p-24f;
    wanted[l] = mul_rn(u, weighed.sum[l]);
    best[l] = weighed.best[l];
    position[l] = weighed.position[l];
    drawn[l] = !weighed.open(l);
  }
  for (int h = clip.h0; h < clip.h1; ++h)
    for (int w = clip.w0; w < clip.w1; ++w) {
      const float4 quad = load4(image + (int64_t{h} * shape.W + w) * shape.lanes);
      const float value[4] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
      for (int l = 0; l < 4; ++l) {
        reached[l] = add_rn(reached[l], value[l] > 0.0f ? value[l] : 0.0f);
        if (!drawn[l] && value[l] > 0.0f && reached[l] >= wanted[l]) {
          best[l] = value[l];
          position[l] = (h - clip.top) * static_cast<int>(shape.size) + w - clip.left;
          drawn[l] = true;
        }
      }
    }
  const int64_t i = (at.plane * grid.pixels + at.pixel) * shape.lanes + at.lane;
  store4(y + i, float4{best[0], best[1], best[2], best[3]});
  if (argmax)
    store4_bytes(argmax + i, static_cast<uint32_t>(position[0]) |
                                 static_cast<uint32_t>(position[1]) << 8 |
                                 static_cast<uint32_t>(position[2]) << 16 |
                                 static_cast<uint32_t>(position[3]) << 24);
}

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
    rand_pool_mean_kernel(PoolShape shape, LaneGrid grid, const T* x, T* __restrict__ y) {
  begin_kernel();
  const LanePlace at = lane_place(grid);
  if (!at.inside) return;
  const int Q = static_cast<int>(shape.Q), p = at.pixel / Q, q = at.pixel - p * Q;
  const T* image = x + at.plane * shape.H * shape.W * shape.lanes + at.lane;
  const Clip clip(shape, p, q);
  const Weighed weighed(shape, clip, image);
  float mean[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int h = clip.h0; h < clip.h1; ++h)
    for (int w = clip.w0; w < clip.w1; ++w) {
      const float4 quad = load4(image + (int64_t{h} * shape.W + w) * shape.lanes);
      const float value[4] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
      for (int l = 0; l < 4; ++l) {
        const float weight = value[l] > 0.0f ? value[l] : 0.0f;
        mean[l] = add_rn(mean[l], mul_rn(weight, weight / weighed.sum[l]));
      }
    }
#pragma unroll
  for (int l = 0; l < 4; ++l) mean[l] = weighed.open(l) ? mean[l] : weighed.best[l];
  store4(y + (at.plane * grid.pixels + at.pixel) * shape.lanes + at.lane,
         float4{mean[0], mean[1], mean[2], mean[3]});
}

void check_draw(const char* op, const PoolShape& shape, const DropoutShape& draw) {
  require(draw.N == shape.N && draw.lanes == shape.lanes &&
              draw.features == shape.C * shape.P * shape.Q,
          op, ": draw must be of the windows, got ", draw.N, "x", draw.features, " features in ",
          draw.lanes, " lanes and ", shape.N, "x", shape.C, "x", shape.P, "x", shape.Q, " in ",
          shape.lanes, " lanes");
}

LaneGrid grid_of(const char* op, const PoolShape& shape) {
  check_pool(op, shape);
  return lane_grid(op, image_blocks(op, shape.N, shape.lanes) * shape.C, shape.P * shape.Q,
                   shape.lanes);
}

}  // namespace

void rand_pool_forward(const PoolShape& shape,
                       const DropoutShape& draw,
                       Precision precision,
                       const void* x,
                       void* y,
                       uint8_t* argmax,
                       const Control* control,
                       Stream stream) {
  const char* op = "rand_pool_forward";
  const LaneGrid grid = grid_of(op, shape);
  check_draw(op, shape, draw);
  const Dropout drawing = dropout_of(op, draw, control);
  require_aligned(op, argmax);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(rand_pool_forward_kernel<T>, grid.grid(), grid.block(), 0, stream, shape, grid, drawing,
           static_cast<const T*>(x), static_cast<T*>(y), argmax);
  });
}

void rand_pool_mean(
    const PoolShape& shape, Precision precision, const void* x, void* y, Stream stream) {
  const LaneGrid grid = grid_of("rand_pool_mean", shape);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(rand_pool_mean_kernel<T>, grid.grid(), grid.block(), 0, stream, shape, grid,
           static_cast<const T*>(x), static_cast<T*>(y));
  });
}

}  // namespace convnet
