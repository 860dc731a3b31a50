// A bias for every filter and pixel, behind a convolution whose filters all pixels share.
#pragma once
#include "shapes.hpp"

namespace convnet {

// y[n,k,p,q] = x[n,k,p,q] + bias[k,p,q]: x and y [N/L][K][P][Q][L] by precision, maybe the same, bias [K][P][Q].
void add_position_bias(const ConvShape& shape,
                       Precision precision,
                       const void* x,
                       const float* bias,
                       void* y,
                       Stream stream);

// dbias[k,p,q] = the sum of dy[n,k,p,q] over the images.
void add_position_bias_backward(
    const ConvShape& shape, Precision precision, const void* dy, float* dbias, Stream stream);

}  // namespace convnet
