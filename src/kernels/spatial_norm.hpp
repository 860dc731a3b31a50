// Normalisation over a square of pixels of the same map: by the sum of the squares (rnorm), or of what differs from the
// mean (cnorm). All tensors [N/L][C][H][W][L]. The window W(p) of a pixel has the rows and columns [p - size/2, p - size/2 +
// size), clipped to the map; size is 1 to the larger side.
//
// Sums go along the columns of a row first, then over the rows, each time in ascending order.
#pragma once
#include "shapes.hpp"

namespace convnet {

// Bytes of scratch memory that rnorm_backward needs, and the two passes of cnorm.
int64_t rnorm_workspace(const SpatialNormShape& shape, Precision precision);
int64_t cnorm_workspace(const SpatialNormShape& shape, Precision precision);

// y_p = x_p * d_p^-beta,  d_p = k + alpha * sum of x_j^2 over j in W(p)
void rnorm_forward(
    const SpatialNormShape& shape, Precision precision, const void* x, void* y, Stream stream);

// dx_p = dy_p d_p^-beta - 2 alpha beta x_p * sum over {o : p in W(o)} of dy_o x_o d_o^(-beta-1); d is computed again from x.
void rnorm_backward(const SpatialNormShape& shape,
                    Precision precision,
                    const void* dy,
                    const void* x,
                    void* dx,
                    float* workspace,
                    Stream stream);

// y_p = x_p * d_p^-beta,  d_p = k + alpha * sum of u_j^2 over j in W(p),  u_j = x_j - the mean of x over W(j)
void cnorm_forward(const SpatialNormShape& shape,
                   Precision precision,
                   const void* x,
                   void* y,
                   float* workspace,
                   Stream stream);

// dx_p = dy_p d_p^-beta - 2 alpha beta u_p * sum over {o : p in W(o)} of dy_o x_o d_o^(-beta-1): the gradient of the 2012
// program, which leaves out that the means depend on x.
void cnorm_backward(const SpatialNormShape& shape,
                    Precision precision,
                    const void* dy,
                    const void* x,
                    void* dx,
                    float* workspace,
                    Stream stream);

}  // namespace convnet
