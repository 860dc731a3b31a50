// Rectified linear unit on `count` contiguous values by precision; y may be x, dx may be dy.
#pragma once
#include "shapes.hpp"

namespace convnet {

// y = max(x, 0); NaN stays NaN, so that a diverged network shows
void relu_forward(int64_t count, Precision precision, const void* x, void* y, Stream stream);

// dx = dy where y > 0, else 0 (0 at 0, as in the 2012 program)
void relu_backward(
    int64_t count, Precision precision, const void* dy, const void* y, void* dx, Stream stream);

}  // namespace convnet
