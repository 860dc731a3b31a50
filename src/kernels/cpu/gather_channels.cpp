// Channels picked by a table, a channel of an image block at a time.
#include "../gather_channels.hpp"

#include <algorithm>

#include "checks.hpp"
#include "level.hpp"
#include "work.hpp"

namespace convnet {

void gather_channels(const GatherShape& shape,
                     Precision precision,
                     const void* x,
                     const int32_t* table,
                     void* y,
                     Stream) {
  cpu::check("gather_channels", precision, shape);
  const int64_t plane = shape.H * shape.W * shape.lanes;
  cpu::in_parallel(shape.N / shape.lanes * shape.K, [&](int64_t index) {
    const int64_t block = index / shape.K, i = index % shape.K;
    const float* const from = static_cast<const float*>(x) + (block * shape.C + table[i]) * plane;
    std::copy(from, from + plane, static_cast<float*>(y) + index * plane);
  });
}

void gather_channels_backward(const GatherShape& shape,
                              Precision precision,
                              const void* dy,
                              const int32_t* starts,
                              const int32_t* places,
                              void* dx,
                              Stream) {
  cpu::check("gather_channels_backward", precision, shape);
  const int64_t plane = shape.H * shape.W * shape.lanes;
  cpu::in_parallel(shape.N / shape.lanes * shape.C, [&](int64_t index) {
    const int64_t block = index / shape.C, c = index % shape.C;
    float* const to = static_cast<float*>(dx) + index * plane;
    std::fill(to, to + plane, 0.0f);
    for (int32_t j = starts[c]; j < starts[c + 1]; ++j) {
      const float* const from =
          static_cast<const float*>(dy) + (block * shape.K + places[j]) * plane;
      cpu::vectorised([&]() CONVNET_INLINE {
        for (int64_t i = 0; i < plane; ++i) to[i] += from[i];
      });
    }
  });
}

}  // namespace convnet
