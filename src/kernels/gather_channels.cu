// Channels picked by a table.
//
// What       forward y[n,i,h,w] = x[n,table[i],h,w]; backward dx[n,c,h,w] = sum of dy[n,i,h,w] over
//            the i with table[i] = c, in ascending order, which are listed by channel: places[j] for
//            starts[c] <= j < starts[c + 1].
// Tensors    x, dx [N/L][C][H][W][L] and y, dy [N/L][K][H][W][L] by precision; table and places int32
//            [K], starts int32 [C + 1]. Sums are float32, rounded once.
// Work       one thread per four lanes of one pixel of one channel of an image block, of y forward
//            and of dx backward (tile/quads.cuh). A thread block has one channel: it reads the
//            tables at one place.
// Shared     none.
// Barriers   none.
// Needs      lanes a multiple of 8, N a multiple of lanes; tables of places that exist.
// Cost       8 bytes per value of y in both directions, and 4 more per value of dx backward, half of
//            it in bf16: bound by memory.
#include "gather_channels.hpp"

#include "arch/arch.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

template <class T>
__global__ void __launch_bounds__(kQuadThreads) gather_channels_kernel(
    GatherShape shape, LaneGrid grid, const T* x, const int32_t* table, T* y) {
  begin_kernel();
  const LanePlace at = lane_place(grid);  // plane = channel of y of an image block
  if (!at.inside) return;
  const int K = static_cast<int>(shape.K), plane_of_all = static_cast<int>(at.plane);
  const int64_t block = plane_of_all / K;
  const int i = plane_of_all % K;
  const int64_t pixel = at.pixel * shape.lanes + at.lane, plane = grid.pixels * shape.lanes;
  store4(y + at.plane * plane + pixel, load4(x + (block * shape.C + table[i]) * plane + pixel));
}

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
    gather_channels_backward_kernel(GatherShape shape,
                                    LaneGrid grid,
                                    const T* dy,
                                    const int32_t* starts,
                                    const int32_t* places,
                                    T* dx) {
  begin_kernel();
  const LanePlace at = lane_place(grid);  // plane = channel of dx of an image block
  if (!at.inside) return;
  const int C = static_cast<int>(shape.C), plane_of_all = static_cast<int>(at.plane);
  const int64_t block = plane_of_all / C;
  const int c = plane_of_all % C;
  const int64_t pixel = at.pixel * shape.lanes + at.lane, plane = grid.pixels * shape.lanes;
  float4 sum{0.0f, 0.0f, 0.0f, 0.0f};
  const int32_t end = starts[c + 1];
  for (int32_t j = starts[c]; j < end; ++j) {
    const float4 v = load4(dy + (block * shape.K + places[j]) * plane + pixel);
    sum = float4{sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
  }
  store4(dx + at.plane * plane + pixel, sum);
}

// One plane for each of `channels`.
LaneGrid grid_of(const char* op, const GatherShape& shape, int64_t channels) {
  require(shape.C >= 1 && shape.K >= 1, op, ": there must be channels, got C=", shape.C,
          " K=", shape.K, "; skip the call for empty tensors");
  return lane_grid(op, image_blocks(op, shape.N, shape.lanes) * channels, shape.H * shape.W,
                   shape.lanes);
}

}  // namespace

void gather_channels(const GatherShape& shape,
                     Precision precision,
                     const void* x,
                     const int32_t* table,
                     void* y,
                     Stream stream) {
  const LaneGrid grid = grid_of("gather_channels", shape, shape.K);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(gather_channels_kernel<T>, grid.grid(), grid.block(), 0, stream, shape, grid,
           static_cast<const T*>(x), table, static_cast<T*>(y));
  });
}

void gather_channels_backward(const GatherShape& shape,
                              Precision precision,
                              const void* dy,
                              const int32_t* starts,
                              const int32_t* places,
                              void* dx,
                              Stream stream) {
  const LaneGrid grid = grid_of("gather_channels_backward", shape, shape.C);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(gather_channels_backward_kernel<T>, grid.grid(), grid.block(), 0, stream, shape, grid,
           static_cast<const T*>(dy), starts, places, static_cast<T*>(dx));
  });
}

}  // namespace convnet
