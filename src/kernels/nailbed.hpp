// One pixel of every stride x stride. x [N/L][C][H][W][L], y [N/L][C][P][Q][L].
#pragma once
#include "shapes.hpp"

namespace convnet {

// y(p,q) = x(top + p * stride, left + q * stride)
void nailbed_forward(
    const NailbedShape& shape, Precision precision, const void* x, void* y, Stream stream);

// dx of these pixels is dy, that of the others 0; every element is written.
void nailbed_backward(
    const NailbedShape& shape, Precision precision, const void* dy, void* dx, Stream stream);

}  // namespace convnet
