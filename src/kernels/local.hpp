// A convolution that has filters and biases of its own at every output pixel ("local", unshared), and its gradients.
#pragma once
#include <string>
#include <vector>

#include "shapes.hpp"
#include "variants.hpp"

namespace convnet {

// y[n,k,p,q] = bias[k,p,q] + sum over c, r, s of weight[p,q,k,c,r,s] x[n,c,p*stride-pad+r,q*stride-pad+s], then ReLU where
// asked; zero outside of the image, grouped.
// x, y and weight by precision (shapes.hpp): x [N/L][C][H][W][L], weight [P][Q][g][C/g][R][S][K/g], bias [K][P][Q] or null,
// y [N/L][K][P][Q][L]. A sum goes through c, r, s of the taps inside the image, whatever N, K or the grid.
void local_forward(const LocalShape& shape,
                   Precision precision,
                   const void* x,
                   const void* weight,
                   const float* bias,
                   void* y,
                   bool relu,
                   Stream stream);

// dx, every element written (0 where no window reads it). mask or null: x, where a ReLU made it; dx is then 0 where x > 0
// does not hold, the bits of relu_backward. A sum goes through p, q, k of the windows that hold the pixel.
void local_backward_data(const LocalShape& shape,
                         Precision precision,
                         const void* dy,
                         const void* weight,
                         void* dx,
                         const void* mask,
                         Stream stream);

// dweight like the weight, every element written (0 for a tap outside of the image), and dbias [K][P][Q] or null: sums over
// the images, in their order.
void local_backward_filter(const LocalShape& shape,
                           Precision precision,
                           const void* dy,
                           const void* x,
                           float* dweight,
                           float* dbias,
                           Stream stream);

// The kernels that they take, and all that there are.
std::string local_forward_variant(const LocalShape& shape, Precision precision);
std::string local_backward_data_variant(const LocalShape& shape, Precision precision);
std::string local_backward_filter_variant(const LocalShape& shape, Precision precision);
std::vector<VariantRow> local_variants();

}  // namespace convnet
