// Local response normalisation across channels. All tensors [N/L][C][H][W][L]; size is 1 to 16, also above C.
#pragma once
#include "shapes.hpp"

namespace convnet {

// y_i = x_i * d_i^-beta,  d_i = k + alpha * sum of x_j^2 over j in [i - size/2, i - size/2 + size), clipped to i's group
void lrn_forward(const LrnShape& shape, Precision precision, const void* x, void* y, Stream stream);

// dx_i = dy_i d_i^-beta - 2 alpha beta x_i * sum over {f : i in window(f)} of dy_f x_f d_f^(-beta-1); d is computed again from x
void lrn_backward(const LrnShape& shape,
                  Precision precision,
                  const void* dy,
                  const void* x,
                  void* dx,
                  Stream stream);

}  // namespace convnet
