// The gradients of max-pooling and of the local response normalisation in front of it in one kernel: the gradient between
// the two never reaches memory. x, dx [N/L][C][H][W][L], dp and argmax [N/L][C][P][Q][L]; N, C, H, W and lanes of both
// shapes are the same.
#pragma once
#include "shapes.hpp"

namespace convnet {

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
