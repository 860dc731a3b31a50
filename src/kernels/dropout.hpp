// Dropout as in the paper: no scaling while training. x, y, mask [N/L][features][L].
#pragma once
#include "control.hpp"
#include "shapes.hpp"

namespace convnet {

// y = x * mask. Element (n, f) is kept (mask 1) iff word 0 of Philox4x32-10 at
//   counter = (n * features_total + feature_offset + f, step, layer, 0), key = (seed low, seed high)
// is at least p * 2^32, step being that of the control block (p as float32, the product rounded to the nearest integer): the mask depends on neither lanes nor placement.
void dropout_forward(const DropoutShape& shape,
                     Precision precision,
                     const void* x,
                     void* y,
                     uint8_t* mask,
                     const Control* control,
                     Stream stream);

// dx = dy * mask
void dropout_backward(int64_t count,
                      Precision precision,
                      const void* dy,
                      const uint8_t* mask,
                      void* dx,
                      Stream stream);

}  // namespace convnet
