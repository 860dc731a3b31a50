// dweight and dbias: the gradient of a convolution with respect to its filters and biases, summed over the images.
#pragma once
#include <string>
#include <vector>

#include "shapes.hpp"
#include "variants.hpp"

namespace convnet {

// Bytes of scratch memory that conv_backward_filter needs.
int64_t conv_backward_filter_workspace(const ConvShape& shape, Precision precision);

// dy [N/L][K][P][Q][L], x [N/L][C][H][W][L] -> dweight [g][C/g][R][S][K/g], dbias [K] or null.
// Deterministic: partial sums go to the workspace and are added in a fixed order that depends on the shape alone.
void conv_backward_filter(const ConvShape& shape,
                          Precision precision,
                          const void* dy,
                          const void* x,
                          float* dweight,
                          float* dbias,
                          float* workspace,
                          Stream stream);

// The kernel that it takes, and all that there are.
std::string conv_backward_filter_variant(const ConvShape& shape, Precision precision);
std::vector<VariantRow> conv_backward_filter_variants();

}  // namespace convnet
