// Overlapping max-pooling. x [N/L][C][H][W][L], y and argmax [N/L][C][P][Q][L].
#pragma once
#include "shapes.hpp"

namespace convnet {

// argmax (may be null): position r * size + s in the window of the first maximum in row order; hence size <= 15.
// The first NaN of a window, where there is one, counts as its maximum.
void max_pool_forward(const PoolShape& shape,
                      Precision precision,
                      const void* x,
                      void* y,
                      uint8_t* argmax,
                      Stream stream);

// dx gathers from every window whose argmax is this pixel, windows in row order: no atomics, every element written.
// mask (may be null): the pooled y of a ReLU's output; windows where it is not above 0 pass nothing on, so that dx is the
// gradient in front of the ReLU.
void max_pool_backward(const PoolShape& shape,
                       Precision precision,
                       const void* dy,
                       const uint8_t* argmax,
                       const void* mask,
                       void* dx,
                       Stream stream);

}  // namespace convnet
