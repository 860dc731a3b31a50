// From images as others hold them on the device to the layout of activations.
#pragma once
#include "shapes.hpp"

namespace convnet {

// x float32, where value (n, c, h, w) is x[offset + n*steps[0] + c*steps[1] + h*steps[2] + w*steps[3]]
//   -> y [N/L][C*s*s][ceil(H/s)][ceil(W/s)][L] by precision, s = fold:
//   y(n, c*s*s + h%s*s + w%s, h/s, w/s) = x(n, c, h, w); zero for n from `valid` on, and where there is no such h or w.
// With s = 1, filters (K, C/g, R, S) become weights [g][C/g][R][S][K/g]: N = valid = K, lanes = K/g.
void pack(const PackShape& shape, Precision precision, const float* x, void* y, Stream stream);

}  // namespace convnet
