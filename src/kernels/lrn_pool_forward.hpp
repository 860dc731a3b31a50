// Local response normalisation and the max-pooling behind it in one kernel: the normalised activations never reach memory.
// x [N/L][C][H][W][L], p and argmax [N/L][C][P][Q][L]; N, C, H, W and lanes of both shapes are the same.
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

}  // namespace convnet
