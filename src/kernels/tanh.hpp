// Hyperbolic tangent on `count` contiguous values by precision; y may be x, dx may be dy.
#pragma once
#include "shapes.hpp"

namespace convnet {

// y = tanh(x), within 2.5 units in the last place of float32, then rounded to what activations are made of
void tanh_forward(int64_t count, Precision precision, const void* x, void* y, Stream stream);

// dx = dy * (1 - y * y), y the output: every operation is rounded on its own
void tanh_backward(
    int64_t count, Precision precision, const void* dy, const void* y, void* dx, Stream stream);

}  // namespace convnet
