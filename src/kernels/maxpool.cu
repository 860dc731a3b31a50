// Overlapping max-pooling.
//
// What       forward y(p,q) = max of x over the window whose corner is (p * stride - pad_top, q *
//            stride - pad_left), clipped to the image; argmax = position r * size + s of the first
//            maximum in row order. The first NaN, if there is one, wins and is the result. Backward
//            dx(h,w) = sum of dy over the windows whose argmax is (h,w): it gathers, in row order,
//            so that it needs no atomics, writes every element and gives the same bits every time.
// Tensors    x, dx [N/L][C][H][W][L], y, dy, mask [N/L][C][P][Q][L] by precision, argmax uint8 as y.
//            Maxima are passed on as they are; sums are float32, rounded once.
// Work       one thread per four neighbouring lanes of an output pixel (of an input pixel
//            backward), up to 256 threads per block; a block stays inside one channel of one image
//            block. Windows of 3 with stride 2 are unrolled.
// Shared     none: overlapping windows meet in the L1 and L2 caches.
// Barriers   none.
// Needs      lanes a multiple of 8, size <= 15, every window with a pixel in it; 16-byte aligned
//            activations, 4-byte aligned argmax.
// Cost       4 HW + 5 PQ bytes per image and channel (2 HW + 3 PQ in bf16), forward and backward,
//            and 4 PQ (2 PQ) for the mask: bound by memory.
#include "maxpool.hpp"

#include <cmath>

#include "arch/arch.cuh"
#include "tile/pool_windows.cuh"

namespace convnet {
namespace {

// kSize 0: the size is shape.size.
template <class T, int kSize>
__global__ void __launch_bounds__(kQuadThreads, 4) max_pool_forward_kernel(
    PoolShape shape, LaneGrid grid, const T* x, T* __restrict__ y, uint8_t* __restrict__ argmax) {
  begin_kernel();
  const LanePlace at = lane_place(grid);  // plane = channel of an image block, pixel = output pixel
  if (!at.inside) return;
  const int size = kSize ? kSize : static_cast<int>(shape.size);
  const int H = static_cast<int>(shape.H), W = static_cast<int>(shape.W),
            Q = static_cast<int>(shape.Q);
  const int p = at.pixel / Q, q = at.pixel - p * Q;
  const int top = p * static_cast<int>(shape.stride) - static_cast<int>(shape.pad_top);
  const int left = q * static_cast<int>(shape.stride) - static_cast<int>(shape.pad_left);
  const T* image = x + at.plane * shape.H * shape.W * shape.lanes + at.lane;

  // Outside the image the nearest pixel of the window is read again instead. It cannot win a second
  // time, rows are still visited in order, and the loads stay free of branches.
  const int first = (clamp(top, 0, H - 1) - top) * size + (clamp(left, 0, W - 1) - left);
  float best[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  int position[4] = {first, first, first, first};
#pragma unroll(kSize ? kSize : 1)
  for (int r = 0; r < size; ++r) {
    const int h = clamp(top + r, 0, H - 1);
#pragma unroll(kSize ? kSize : 1)
    for (int s = 0; s < size; ++s) {
      const int w = clamp(left + s, 0, W - 1);
      const float4 quad = load4(image + (int64_t{h} * W + w) * shape.lanes);
      const float value[4] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // Larger, or NaN; a best that is NaN is not equal to itself and stays.
        if (best[j] == best[j] && !(value[j] <= best[j])) {
          best[j] = value[j];
          position[j] = (h - top) * size + (w - left);
        }
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

// kSize and kStride 0: those of the shape.
template <class T, int kSize, int kStride>
__global__ void __launch_bounds__(kQuadThreads) max_pool_backward_kernel(PoolShape shape,
                                                                         LaneGrid grid,
                                                                         const T* dy,
                                                                         const uint8_t* argmax,
                                                                         const T* mask,
                                                                         T* __restrict__ dx) {
  begin_kernel();
  const LanePlace at = lane_place(grid);  // plane = channel of an image block, pixel = input pixel
  if (!at.inside) return;
  const int size = kSize ? kSize : static_cast<int>(shape.size);
  const int stride = kStride ? kStride : static_cast<int>(shape.stride);
  const int P = static_cast<int>(shape.P), Q = static_cast<int>(shape.Q),
            W = static_cast<int>(shape.W);
  const int h = at.pixel / W, w = at.pixel - h * W;
  // In padded coordinates window p covers rows p * stride to p * stride + size - 1; at most
  // `covering` windows hold a row.
  const int row = h + static_cast<int>(shape.pad_top),
            column = w + static_cast<int>(shape.pad_left);
  const int covering = (size + stride - 1) / stride;
  const int last_p = row / stride < P ? row / stride : P - 1;
  const int last_q = column / stride < Q ? column / stride : Q - 1;
  const int first_p = row < size ? 0 : (row - size) / stride + 1;
  const int first_q = column < size ? 0 : (column - size) / stride + 1;
  const int64_t plane = at.plane * P * Q * shape.lanes + at.lane;

  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll(kSize ? kSize : 1)
  for (int i = 0; i < covering; ++i) {
    // A window too many is read at a legal place and not used: the loads stay free of branches.
    const int p = first_p + i < last_p ? first_p + i : last_p;
#pragma unroll(kSize ? kSize : 1)
    for (int j = 0; j < covering; ++j) {
      const int q = first_q + j < last_q ? first_q + j : last_q;
      const bool covers = first_p + i <= last_p && first_q + j <= last_q;
      const uint32_t position =
          static_cast<uint32_t>((row - p * stride) * size + (column - q * stride));
      const int64_t k = plane + (int64_t{p} * Q + q) * shape.lanes;
      const uint32_t winners = load4_bytes(argmax + k);
      const float4 quad = load4(dy + k);
      float value[4] = {quad.x, quad.y, quad.z, quad.w};
      if (mask) {
        const float4 y = load4(mask + k);
        const float maximum[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int l = 0; l < 4; ++l) value[l] = maximum[l] > 0.0f ? value[l] : 0.0f;
      }
#pragma unroll
      for (int l = 0; l < 4; ++l)
        if (covers && (winners >> (8 * l) & 0xffu) == position) sum[l] += value[l];
    }
  }
  store4(dx + (at.plane * grid.pixels + at.pixel) * shape.lanes + at.lane,
         float4{sum[0], sum[1], sum[2], sum[3]});
}

}  // namespace

void max_pool_forward(const PoolShape& shape,
                      Precision precision,
                      const void* x,
                      void* y,
                      uint8_t* argmax,
                      Stream stream) {
  const char* op = "max_pool_forward";
  check_pool(op, shape);
  const LaneGrid grid = lane_grid(op, image_blocks(op, shape.N, shape.lanes) * shape.C,
                                  shape.P * shape.Q, shape.lanes);
  require_aligned(op, argmax);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    auto* kernel = shape.size == 3 ? max_pool_forward_kernel<T, 3> : max_pool_forward_kernel<T, 0>;
    launch(kernel, grid.grid(), grid.block(), 0, stream, shape, grid, static_cast<const T*>(x),
           static_cast<T*>(y), argmax);
  });
}

void max_pool_backward(const PoolShape& shape,
                       Precision precision,
                       const void* dy,
                       const uint8_t* argmax,
                       const void* mask,
                       void* dx,
                       Stream stream) {
  const char* op = "max_pool_backward";
  check_pool(op, shape);
  const LaneGrid grid = lane_grid(op, image_blocks(op, shape.N, shape.lanes) * shape.C,
                                  shape.H * shape.W, shape.lanes);
  require_aligned(op, argmax);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    auto* kernel = shape.size == 3 && shape.stride == 2 ? max_pool_backward_kernel<T, 3, 2>
                                                        : max_pool_backward_kernel<T, 0, 0>;
    launch(kernel, grid.grid(), grid.block(), 0, stream, shape, grid, static_cast<const T*>(dy),
           argmax, static_cast<const T*>(mask), static_cast<T*>(dx));
  });
}

}  // namespace convnet
