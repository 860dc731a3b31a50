// Average pooling. x [N/L][C][H][W][L], y [N/L][C][P][Q][L].
#pragma once
#include "shapes.hpp"

namespace convnet {

// y = the sum of x over the window, clipped to the image, divided by the number of pixels that are left of it.
void avg_pool_forward(
    const PoolShape& shape, Precision precision, const void* x, void* y, Stream stream);

// dx gathers dy / pixels of every window that holds this pixel, windows in row order: no atomics, every element written.
// mask (may be null): the layer's input x, where that is the output of a ReLU; dx is 0 where it is not above 0, the gradient
// in front of the ReLU.
void avg_pool_backward(const PoolShape& shape,
                       Precision precision,
                       const void* dy,
                       const void* mask,
                       void* dx,
                       Stream stream);

}  // namespace convnet
