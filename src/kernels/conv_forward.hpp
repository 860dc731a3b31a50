// y = w * x + b, then ReLU where asked: grouped 2-D cross-correlation.
#pragma once
#include <string>
#include <vector>

#include "shapes.hpp"
#include "variants.hpp"

namespace convnet {

// x, y and weight by precision (shapes.hpp): x [N/L][C][H][W][L], weight [g][C/g][R][S][K/g], bias [K] or null, y [N/L][K][P][Q][L].
// With `accumulate`, what y held before is added behind the bias, as it was stored: y = (w * x + b) + y, then ReLU.
// The order of every sum depends on C/g, R and S alone, never on N, K or the grid: a tower alone gives the same bits.
void conv_forward(const ConvShape& shape,
                  Precision precision,
                  const void* x,
                  const void* weight,
                  const float* bias,
                  void* y,
                  bool relu,
                  bool accumulate,
                  Stream stream);

// The kernel that it takes, and all that there are.
std::string conv_forward_variant(const ConvShape& shape, Precision precision);
std::vector<VariantRow> conv_forward_variants();

}  // namespace convnet
