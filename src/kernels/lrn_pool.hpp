// Local response normalisation and the max-pooling behind it in one kernel each way: the normalised activations never reach
// memory. x [N/L][C][H][W][L], p and argmax [N/L][C][P][Q][L]; N, C, H, W and lanes of both shapes are the same.
#pragma once
#include "shapes.hpp"

namespace convnet {

// p = max_pool_forward(lrn_forward(x)), to the bit; argmax (may be null) as max_pool_forward writes it.
void lrn_pool_forward(const LrnShape& lrn,
                      const PoolShape& pool,
                      Precision precision,
                      const void* x,
                      void* p,
                      uint8_t* argmax,
                      Stream stream);

// dx = lrn_backward(max_pool_backward(dp), x), with the same order of sums; in bf16 the gradient between the two is not
// rounded. relu: x is the output of a ReLU, and dx becomes the gradient in front of it: 0 where x is not above 0.
void lrn_pool_backward(const LrnShape& lrn,
                       const PoolShape& pool,
                       Precision precision,
                       const void* dp,
                       const uint8_t* argmax,
                       const void* x,
                       void* dx,
                       bool relu,
                       Stream stream);

}  // namespace convnet
