// Dropout without rescaling while training.
//
// What       forward mask = random word >= p * 2^32, y = x * mask; backward dx = dy * mask. The
//            word of element (n, f) is word 0 of Philox4x32-10 at counter (n * features_total +
//            feature_offset + f, step, layer, 0) under the seed, step being control's; the first counter word counts
//            modulo 2^32. The last word, 0, is DROPOUT in convnet/kernels/rng.py.
// Tensors    x, y [N/L][features][L] by precision, mask uint8 alike; control: one Control. Backward
//            takes count values of any layout. In place allowed.
// Work       one thread per four neighbouring lanes of a feature, up to 256 threads per block.
// Shared     none.
// Barriers   none.
// Needs      lanes a multiple of 8; 16-byte aligned activations, 4-byte aligned mask.
// Cost       9 bytes (5 in bf16) per value and, forward, about 80 integer operations: bound by
//            memory on large layers, by the launch on the network's own.
#include "dropout.hpp"

#include "arch/arch.cuh"
#include "tile/dropout.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

template <class T>
__global__ void __launch_bounds__(kQuadThreads) dropout_forward_kernel(
    LaneGrid grid, int64_t lanes, Dropout dropout, const T* x, T* y, uint8_t* mask) {
  begin_kernel();
  const LanePlace at = lane_place(grid);  // plane = image block, pixel = feature
  if (!at.inside) return;
  const uint32_t bytes = kept(dropout, at.plane * lanes + at.lane, at.pixel);
  const int64_t i = (at.plane * grid.pixels + at.pixel) * lanes + at.lane;
  store4(y + i, keep(load4(x + i), bytes));
  store4_bytes(mask + i, bytes);
}

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
    dropout_backward_kernel(int64_t count, const T* dy, const uint8_t* mask, T* dx) {
  begin_kernel();
  int64_t i = map_index();
  if (i + 4 <= count) {
    store4(dx + i, keep(load4(dy + i), load4_bytes(mask + i)));
  } else {
    for (; i < count; ++i) store1(dx + i, load1(dy + i) * static_cast<float>(mask[i]));
  }
}

}  // namespace

void dropout_forward(const DropoutShape& shape,
                     Precision precision,
                     const void* x,
                     void* y,
                     uint8_t* mask,
                     const Control* control,
                     Stream stream) {
  const Dropout dropout = dropout_of("dropout_forward", shape, control);
  const LaneGrid grid =
      lane_grid("dropout_forward", image_blocks("dropout_forward", shape.N, shape.lanes),
                shape.features, shape.lanes);
  require_aligned("dropout_forward", mask);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(dropout_forward_kernel<T>, grid.grid(), grid.block(), 0, stream, grid, shape.lanes,
           dropout, static_cast<const T*>(x), static_cast<T*>(y), mask);
  });
}

void dropout_backward(int64_t count,
                      Precision precision,
                      const void* dy,
                      const uint8_t* mask,
                      void* dx,
                      Stream stream) {
  const Dim3 grid = map_grid("dropout_backward", count);
  require_aligned("dropout_backward", mask);
  if (count == 0) return;
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(dropout_backward_kernel<T>, grid, Dim3(kQuadThreads), 0, stream, count,
           static_cast<const T*>(dy), mask, static_cast<T*>(dx));
  });
}

}  // namespace convnet
