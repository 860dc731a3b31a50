// Average pooling.
//
// What       forward y(p,q) = sum of x over the window whose corner is (p * stride - pad_top, q *
//            stride - pad_left), clipped to the image, in row order, divided by the pixels that are
//            left of it. Backward dx(h,w) = sum of dy times the reciprocal of that number over the
//            windows that hold (h,w): it gathers, in row order, so that it needs no atomics, writes
//            every element and gives the same bits every time; 0 where the mask is not above 0.
// Tensors    x, mask, dx [N/L][C][H][W][L], y, dy [N/L][C][P][Q][L] by precision. Sums are float32,
//            rounded once.
// Work       one thread per four neighbouring lanes of an output pixel (of an input pixel
//            backward), up to 256 threads per block; a block stays inside one channel of one image
//            block. Windows of 3 with stride 2 are unrolled.
// Shared     none: overlapping windows meet in the L1 and L2 caches.
// Barriers   none.
// Needs      lanes a multiple of 8, size <= 15, every window with a pixel in it; 16-byte aligned
//            activations.
// Cost       4 HW + 4 PQ bytes per image and channel (half of it in bf16), forward and backward,
//            and 4 HW (2 HW) for the mask: bound by memory.
#include "avgpool.hpp"

#include "arch/arch.cuh"
#include "tile/pool_windows.cuh"

namespace convnet {
namespace {

// kSize 0: the size is shape.size.
template <class T, int kSize>
__global__ void __launch_bounds__(kQuadThreads)
    avg_pool_forward_kernel(PoolShape shape, LaneGrid grid, const T* x, T* __restrict__ y) {
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

  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll(kSize ? kSize : 1)
  for (int r = 0; r < size; ++r) {
    // Outside of the image the nearest pixel is read and not used: the loads stay free of branches.
    const int h = clamp(top + r, 0, H - 1);
#pragma unroll(kSize ? kSize : 1)
    for (int s = 0; s < size; ++s) {
      const int w = clamp(left + s, 0, W - 1);
      const bool exists = h == top + r && w == left + s;
      const float4 quad = load4(image + (int64_t{h} * W + w) * shape.lanes);
      const float value[4] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
      for (int l = 0; l < 4; ++l)
        if (exists) sum[l] += value[l];
    }
  }
  const auto pixels = static_cast<float>(clipped(top, size, H) * clipped(left, size, W));
  store4(y + (at.plane * grid.pixels + at.pixel) * shape.lanes + at.lane,
         float4{sum[0] / pixels, sum[1] / pixels, sum[2] / pixels, sum[3] / pixels});
}

// kSize and kStride 0: those of the shape.
template <class T, int kSize, int kStride>
__global__ void __launch_bounds__(kQuadThreads) avg_pool_backward_kernel(
    PoolShape shape, LaneGrid grid, const T* dy, const T* mask, T* __restrict__ dx) {
  begin_kernel();
  const LanePlace at = lane_place(grid);  // plane = channel of an image block, pixel = input pixel
  if (!at.inside) return;
  const int size = kSize ? kSize : static_cast<int>(shape.size);
  const int stride = kStride ? kStride : static_cast<int>(shape.stride);
  const int H = static_cast<int>(shape.H), W = static_cast<int>(shape.W),
            Q = static_cast<int>(shape.Q);
  const int pad_top = static_cast<int>(shape.pad_top), pad_left = static_cast<int>(shape.pad_left);
  const int h = at.pixel / W, w = at.pixel - h * W;
  const Covering rows(h + pad_top, shape, shape.P), columns(w + pad_left, shape, shape.Q);
  const int covering = (size + stride - 1) / stride;  // windows that hold a row, at most
  const T* slopes = dy + at.plane * shape.P * shape.Q * shape.lanes + at.lane;
  const int64_t i = (at.plane * grid.pixels + at.pixel) * shape.lanes + at.lane;

  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll(kSize ? kSize : 1)
  for (int j = 0; j < covering; ++j) {
    // A window too many is read at a legal place and not used.
    const int p = clamp(rows.first + j, 0, static_cast<int>(shape.P) - 1);
    const int height = clipped(p * stride - pad_top, size, H);
#pragma unroll(kSize ? kSize : 1)
    for (int k = 0; k < covering; ++k) {
      const int q = clamp(columns.first + k, 0, Q - 1);
      const bool covers = rows.first + j <= rows.last && columns.first + k <= columns.last;
      const float share =
          1.0f / static_cast<float>(height * clipped(q * stride - pad_left, size, W));
      const float4 quad = load4(slopes + (int64_t{p} * Q + q) * shape.lanes);
      const float value[4] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
      for (int l = 0; l < 4; ++l)
        if (covers) sum[l] = add_rn(sum[l], mul_rn(value[l], share));
    }
  }
  if (mask) {
    const float4 quad = load4(mask + i);
    const float value[4] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
    for (int l = 0; l < 4; ++l) sum[l] = value[l] > 0.0f ? sum[l] : 0.0f;
  }
  store4(dx + i, float4{sum[0], sum[1], sum[2], sum[3]});
}

}  // namespace

void avg_pool_forward(
    const PoolShape& shape, Precision precision, const void* x, void* y, Stream stream) {
  const char* op = "avg_pool_forward";
  check_pool(op, shape);
  const LaneGrid grid = lane_grid(op, image_blocks(op, shape.N, shape.lanes) * shape.C,
                                  shape.P * shape.Q, shape.lanes);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    auto* kernel = shape.size == 3 ? avg_pool_forward_kernel<T, 3> : avg_pool_forward_kernel<T, 0>;
    launch(kernel, grid.grid(), grid.block(), 0, stream, shape, grid, static_cast<const T*>(x),
           static_cast<T*>(y));
  });
}

void avg_pool_backward(const PoolShape& shape,
                       Precision precision,
                       const void* dy,
                       const void* mask,
                       void* dx,
                       Stream stream) {
  const char* op = "avg_pool_backward";
  check_pool(op, shape);
  const LaneGrid grid = lane_grid(op, image_blocks(op, shape.N, shape.lanes) * shape.C,
                                  shape.H * shape.W, shape.lanes);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    auto* kernel = shape.size == 3 && shape.stride == 2 ? avg_pool_backward_kernel<T, 3, 2>
                                                        : avg_pool_backward_kernel<T, 0, 0>;
    launch(kernel, grid.grid(), grid.block(), 0, stream, shape, grid, static_cast<const T*>(dy),
           static_cast<const T*>(mask), static_cast<T*>(dx));
  });
}

}  // namespace convnet
