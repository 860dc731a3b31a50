// Dropout without rescaling while training.
//
// What       forward mask = random word >= p * 2^32, y = x * mask; backward dx = dy * mask. The
//            word of element (n, f) is word 0 of Philox4x32-10 at counter (n * features_total +
//            feature_offset + f, step, layer, 0) under the seed; the first counter word counts
//            modulo 2^32. The last word, 0, is DROPOUT in convnet/rng.py.
// Tensors    x, y [N/L][features][L] by precision, mask uint8 alike; backward takes count values of
//            any layout. In place allowed.
// Work       one thread per four neighbouring lanes of a feature, up to 256 threads per block.
//            Every element is a draw of its own, of which one word is used: what a mask is must not
//            depend on which elements lie side by side.
// Shared     none.
// Barriers   none.
// Needs      lanes a multiple of 8; 16-byte aligned activations, 4-byte aligned mask.
// Cost       9 bytes (5 in bf16) per value and, forward, about 80 integer operations: bound by
//            memory on large layers, by the launch on the network's own.
#include "dropout.hpp"

#include <cmath>

#include "arch/arch.cuh"
#include "tile/philox.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

// The product with a mask of four bytes, 0 or 1: what is dropped keeps its sign, and stays NaN where
// x is not finite, as the product does on every device.
__device__ __forceinline__ float4 keep(float4 v, uint32_t mask) {
  return float4{v.x * (mask & 0x1u ? 1.0f : 0.0f), v.y * (mask & 0x100u ? 1.0f : 0.0f),
                v.z * (mask & 0x10000u ? 1.0f : 0.0f), v.w * (mask & 0x1000000u ? 1.0f : 0.0f)};
}

template <class T>
__global__ void __launch_bounds__(kQuadThreads) dropout_forward_kernel(
    DropoutShape shape, LaneGrid grid, uint64_t threshold, const T* x, T* y, uint8_t* mask) {
  begin_kernel();
  const LanePlace at = lane_place(grid);  // plane = image block, pixel = feature
  if (!at.inside) return;
  uint32_t bytes = 0;
  for (int j = 0; j < 4; ++j) {
    const int64_t n = at.plane * shape.lanes + at.lane + j;
    const int64_t element = n * shape.features_total + shape.feature_offset + at.pixel;
    const PhiloxWords counter{{static_cast<uint32_t>(element), shape.step, shape.layer, 0}};
    const uint32_t kept = philox(counter, shape.seed).w[0] >= threshold;
    bytes |= kept << (8 * j);
  }
  const int64_t i = (at.plane * shape.features + at.pixel) * shape.lanes + at.lane;
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
                     Stream stream) {
  require(shape.p >= 0.0f && shape.p <= 1.0f,
          "dropout_forward: p must lie in 0..1, got p=", shape.p);
  require(
      shape.feature_offset >= 0 && shape.feature_offset + shape.features <= shape.features_total,
      "dropout_forward: features must lie in the unsplit layer, got features=", shape.features,
      " at offset ", shape.feature_offset, " of ", shape.features_total);
  const LaneGrid grid =
      lane_grid("dropout_forward", image_blocks("dropout_forward", shape.N, shape.lanes),
                shape.features, shape.lanes);
  require_aligned("dropout_forward", mask);
  const uint64_t threshold = static_cast<uint64_t>(std::llround(double{shape.p} * 4294967296.0));
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(dropout_forward_kernel<T>, grid.grid(), grid.block(), 0, stream, shape, grid, threshold,
           static_cast<const T*>(x), static_cast<T*>(y), mask);
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
