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
//            block. Windows of 3 are unrolled; with stride 2 a thread takes 2x2 input pixels backward.
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

template <class T>
__global__ void __launch_bounds__(kQuadThreads) max_pool_backward_kernel(PoolShape shape,
                                                                         LaneGrid grid,
                                                                         const T* dy,
                                                                         const uint8_t* argmax,
                                                                         const T* mask,
                                                                         T* __restrict__ dx) {
  begin_kernel();
  const LanePlace at = lane_place(grid);  // plane = channel of an image block, pixel = input pixel
  if (!at.inside) return;
  const int size = static_cast<int>(shape.size), stride = static_cast<int>(shape.stride);
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
  for (int i = 0; i < covering; ++i) {
    // A window too many is read at a legal place and not used: the loads stay free of branches.
    const int p = first_p + i < last_p ? first_p + i : last_p;
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

// Windows of 3, 2 apart: the pixels (2i, 2j) to (2i + 1, 2j + 1) of the padded image lie in no others
// than the windows i - 1 and i, j - 1 and j, which are read once for the four, and every pixel in places
// of its own.
template <class T>
__global__ void __launch_bounds__(kQuadThreads) max_pool_backward_of_3_kernel(PoolShape shape,
                                                                              LaneGrid grid,
                                                                              int columns,
                                                                              const T* dy,
                                                                              const uint8_t* argmax,
                                                                              const T* mask,
                                                                              T* __restrict__ dx) {
  begin_kernel();
  const LanePlace at = lane_place(grid);  // plane = channel of an image block, pixel = four of them
  if (!at.inside) return;
  const int i = at.pixel / columns, j = at.pixel - i * columns;
  const int P = static_cast<int>(shape.P), Q = static_cast<int>(shape.Q);
  const int H = static_cast<int>(shape.H), W = static_cast<int>(shape.W);
  const int lanes = static_cast<int>(shape.lanes);

  // A window that does not exist is read at a legal place, and no maximum lies there: the loads stay
  // free of branches.
  Packed<T> slopes[2][2], maxima[2][2];
  uint32_t winners[2][2];
  const int64_t first = at.plane * (int64_t{P} * Q * lanes) + at.lane;
#pragma unroll
  for (int a = 0; a < 2; ++a) {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int p = clamp(i - 1 + a, 0, P - 1), q = clamp(j - 1 + b, 0, Q - 1);
      const int64_t k = first + int64_t{p * Q + q} * lanes;
      slopes[a][b] = load_packed(dy + k);
      winners[a][b] = load4_bytes(argmax + k);
      if (mask) maxima[a][b] = load_packed(mask + k);
      if (p != i - 1 + a || q != j - 1 + b) winners[a][b] = 0xffffffffu;
    }
  }
#pragma unroll
  for (int a = 0; a < 2; ++a)
#pragma unroll
    for (int b = 0; b < 2; ++b)
      if (mask) slopes[a][b] = keep_where_positive(slopes[a][b], maxima[a][b]);

  const int top = 2 * i - static_cast<int>(shape.pad_top);
  const int left = 2 * j - static_cast<int>(shape.pad_left);
  T* const image = dx + at.plane * (int64_t{H} * W * lanes) + at.lane;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int a = row; a < 2; ++a) {
#pragma unroll
        for (int b = column; b < 2; ++b) {
          const uint32_t position = (row + 2 - 2 * a) * 3 + column + 2 - 2 * b;
          const float4 quad = unpack4(slopes[a][b]);
          const float value[4] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
          for (int l = 0; l < 4; ++l)
            if ((winners[a][b] >> (8 * l) & 0xffu) == position) sum[l] += value[l];
        }
      }
      const int h = top + row, w = left + column;
      if (h >= 0 && h < H && w >= 0 && w < W)
        store4(image + int64_t{h * W + w} * lanes, float4{sum[0], sum[1], sum[2], sum[3]});
    }
  }
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
  require_aligned(op, argmax);
  const int64_t planes = image_blocks(op, shape.N, shape.lanes) * shape.C;
  const bool of_3 = shape.size == 3 && shape.stride == 2;
  const int64_t rows = (shape.H + shape.pad_top + 1) / 2,
                columns = (shape.W + shape.pad_left + 1) / 2;
  const LaneGrid grid =
      lane_grid(op, planes, of_3 ? rows * columns : shape.H * shape.W, shape.lanes);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    const auto *slopes = static_cast<const T*>(dy), *maxima = static_cast<const T*>(mask);
    if (of_3)
      launch(max_pool_backward_of_3_kernel<T>, grid.grid(), grid.block(), 0, stream, shape, grid,
             static_cast<int>(columns), slopes, argmax, maxima, static_cast<T*>(dx));
    else
      launch(max_pool_backward_kernel<T>, grid.grid(), grid.block(), 0, stream, shape, grid, slopes,
             argmax, maxima, static_cast<T*>(dx));
  });
}

}  // namespace convnet
