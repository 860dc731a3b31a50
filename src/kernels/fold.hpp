// The weight of a convolution of stride s as one of stride 1 on an image folded s x s (IngestShape::fold), and its gradient
// back again. `shape` is the convolution before folding; R' = ceil(R/s), S' = ceil(S/s).
#pragma once
#include "shapes.hpp"

namespace convnet {

// weight float32 [g][C/g][R][S][K/g] -> copy bf16 [g][C/g * s * s][R'][S'][K8], K8 = round_up(K/g, 8), or in other precisions
// float32 [g][C/g * s * s][R'][S'][K/g]:
//   copy(c*s*s + r%s*s + t%s, r/s, t/s, k) = weight(c, r, t, k), in bf16 rounded to nearest; zero where there is no such r, t or k
void fold_weight(
    const ConvShape& shape, Precision precision, const float* weight, void* copy, Stream stream);

// folded float32 [g][C/g * s * s][R'][S'][K/g] -> gradient float32 [g][C/g][R][S][K/g]: the value that belongs to each weight
void unfold_gradient(const ConvShape& shape, const float* folded, float* gradient, Stream stream);

}  // namespace convnet
