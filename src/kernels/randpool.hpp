// Stochastic pooling (Zeiler and Fergus 2013). x [N/L][C][H][W][L], y and argmax [N/L][C][P][Q][L].
#pragma once
#include "control.hpp"
#include "shapes.hpp"

namespace convnet {

// A window is clipped to the image; the weight of its values is w = max(x, 0), their sum is taken in row order.
//
// y = a value of the window, drawn with probability w / sum: in row order the first one at which the sum reaches u * sum.
// u = (word >> 8) + 1, times 2^-24: of image n and feature f = (c * P + p) * Q + q the word is word 0 of Philox4x32-10 at
//   counter = (n * features_total + feature_offset + f, step, layer, kPooling), key = (seed low, seed high),
// as for dropout, whose shape `draw` is; its p is not looked at. argmax (may be null): position r * size + s of that value, to
// be given to max_pool_backward. A window with a NaN gives the first of them, and one without a positive value its first
// maximum.
void rand_pool_forward(const PoolShape& shape,
                       const DropoutShape& draw,
                       Precision precision,
                       const void* x,
                       void* y,
                       uint8_t* argmax,
                       const Control* control,
                       Stream stream);

// y = the sum of w * (w / sum), what the draw gives on average; of the other windows the same as there.
void rand_pool_mean(
    const PoolShape& shape, Precision precision, const void* x, void* y, Stream stream);

constexpr uint32_t kPooling = 7;  // POOLING in convnet/kernels/rng.py

}  // namespace convnet
