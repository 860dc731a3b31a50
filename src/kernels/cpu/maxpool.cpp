// Overlapping max-pooling, a channel of an image block at a time.
#include "../maxpool.hpp"

#include "checks.hpp"
#include "windows.hpp"
#include "work.hpp"

namespace convnet {

void max_pool_forward(
    const PoolShape& shape, Precision precision, const void* x, void* y, uint8_t* argmax, Stream) {
  cpu::check("max_pool_forward", precision, shape);
  const int64_t L = shape.lanes, in = shape.H * shape.W * L, out = shape.P * shape.Q * L;
  cpu::in_parallel(shape.N / L * shape.C, [&](int64_t plane) {
    int32_t* const places = cpu::integers(cpu::places_needed(shape));
    cpu::vectorised([&]() CONVNET_INLINE {
      cpu::maxima(shape, static_cast<const float*>(x) + plane * in, 0, 0, shape.P,
                  static_cast<float*>(y) + plane * out, argmax ? argmax + plane * out : nullptr,
                  places);
    });
  });
}

void max_pool_backward(const PoolShape& shape,
                       Precision precision,
                       const void* dy,
                       const uint8_t* argmax,
                       const void* mask,
                       void* dx,
                       Stream) {
  cpu::check("max_pool_backward", precision, shape);
  const int64_t L = shape.lanes, in = shape.H * shape.W * L, out = shape.P * shape.Q * L;
  cpu::in_parallel(shape.N / L * shape.C, [&](int64_t plane) {
    cpu::vectorised([&]() CONVNET_INLINE {
      cpu::gather(shape, static_cast<const float*>(dy) + plane * out, argmax + plane * out,
                  mask ? static_cast<const float*>(mask) + plane * out : nullptr, 0, shape.H,
                  static_cast<float*>(dx) + plane * in);
    });
  });
}

}  // namespace convnet
