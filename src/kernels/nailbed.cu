// One pixel of every stride x stride.
//
// What       forward y(p,q) = x(top + p * stride, left + q * stride); backward dx of such a pixel is its
//            dy, that of the others 0.
// Tensors    x, dx [N/L][C][H][W][L], y, dy [N/L][C][P][Q][L] by precision.
// Work       one thread per four neighbouring lanes of a pixel of what is written, up to 256 threads
//            per block; a block stays inside one channel of one image block.
// Shared     none.
// Barriers   none.
// Needs      lanes a multiple of 8, every pixel inside the image; 16-byte aligned arrays.
// Cost       8 PQ bytes per image and channel forward, 4 HW + 4 PQ backward, half of it in bf16: bound
//            by memory.
#include "nailbed.hpp"

#include "arch/arch.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
    nailbed_forward_kernel(NailbedShape shape, LaneGrid grid, const T* x, T* __restrict__ y) {
  begin_kernel();
  const LanePlace at = lane_place(grid);  // plane = channel of an image block, pixel = output pixel
  if (!at.inside) return;
  const int Q = static_cast<int>(shape.Q), p = at.pixel / Q, q = at.pixel - p * Q;
  const int64_t pixel = (shape.top + p * shape.stride) * shape.W + shape.left + q * shape.stride;
  store4(y + (at.plane * grid.pixels + at.pixel) * shape.lanes + at.lane,
         load4(x + (at.plane * shape.H * shape.W + pixel) * shape.lanes + at.lane));
}

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
    nailbed_backward_kernel(NailbedShape shape, LaneGrid grid, const T* dy, T* __restrict__ dx) {
  begin_kernel();
  const LanePlace at = lane_place(grid);  // plane = channel of an image block, pixel = input pixel
  if (!at.inside) return;
  const int W = static_cast<int>(shape.W), stride = static_cast<int>(shape.stride);
  const int h = at.pixel / W, w = at.pixel - h * W;
  const int row = h - static_cast<int>(shape.top), column = w - static_cast<int>(shape.left);
  float4 slope{0.0f, 0.0f, 0.0f, 0.0f};
  if (row >= 0 && column >= 0) {
    const int p = row / stride, q = column / stride;
    if (p * stride == row && q * stride == column && p < shape.P && q < shape.Q)
      slope = load4(dy + ((at.plane * shape.P + p) * shape.Q + q) * shape.lanes + at.lane);
  }
  store4(dx + (at.plane * grid.pixels + at.pixel) * shape.lanes + at.lane, slope);
}

void check(const char* op, const NailbedShape& s) {
  require(s.stride >= 1 && s.P >= 1 && s.Q >= 1 && s.top + (s.P - 1) * s.stride < s.H &&
              s.left + (s.Q - 1) * s.stride < s.W,
          op, ": every pixel must lie in the image, got ", s.P, "x", s.Q, " of a ", s.H, "x", s.W,
          " image from (", s.top, ", ", s.left, ") on with stride=", s.stride,
          "; use the numbers of NailbedShape.of");
}

}  // namespace

void nailbed_forward(
    const NailbedShape& shape, Precision precision, const void* x, void* y, Stream stream) {
  const char* op = "nailbed_forward";
  check(op, shape);
  const LaneGrid grid = lane_grid(op, image_blocks(op, shape.N, shape.lanes) * shape.C,
                                  shape.P * shape.Q, shape.lanes);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(nailbed_forward_kernel<T>, grid.grid(), grid.block(), 0, stream, shape, grid,
           static_cast<const T*>(x), static_cast<T*>(y));
  });
}

void nailbed_backward(
    const NailbedShape& shape, Precision precision, const void* dy, void* dx, Stream stream) {
  const char* op = "nailbed_backward";
  check(op, shape);
  const LaneGrid grid = lane_grid(op, image_blocks(op, shape.N, shape.lanes) * shape.C,
                                  shape.H * shape.W, shape.lanes);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(nailbed_backward_kernel<T>, grid.grid(), grid.block(), 0, stream, shape, grid,
           static_cast<const T*>(dy), static_cast<T*>(dx));
  });
}

}  // namespace convnet
