// Momentum SGD with weight decay, the paper's update, in place on `count` contiguous float32 values.
#pragma once
#include "shapes.hpp"

namespace convnet {

// v <- momentum * v - lr * (weight_decay * w + g);  w <- w + v, each operation rounded to float32 in this order (no FMA):
//   v = (momentum * v) - (lr * ((weight_decay * w) + g))
// copy (may be null): the new weight in bfloat16, rows of `columns` values padded as by cast_weight, which also writes the
// zeros between them: here they stay as they are. Without a copy `columns` may be anything.
void sgd(int64_t count,
         float* weight,
         float* velocity,
         const float* gradient,
         bf16* copy,
         int64_t columns,
         float lr,
         float momentum,
         float weight_decay,
         Stream stream);

}  // namespace convnet
