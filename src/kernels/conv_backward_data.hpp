// dx: the gradient of a convolution with respect to its input.
#pragma once
#include <string>
#include <vector>

#include "shapes.hpp"
#include "variants.hpp"

namespace convnet {

// dy [N/L][K][P][Q][L], weight [g][C/g][R][S][K/g] -> dx [N/L][C][H][W][L], every element written (0 where no window reads it).
// mask [N/L][C][H][W][L] or null: x, where a ReLU made it; dx is then 0 where x > 0 does not hold, the bits of relu_backward.
void conv_backward_data(const ConvShape& shape,
                        Precision precision,
                        const void* dy,
                        const void* weight,
                        void* dx,
                        const void* mask,
                        Stream stream);

// The kernel that it takes, and all that there are.
std::string conv_backward_data_variant(const ConvShape& shape, Precision precision);
std::vector<VariantRow> conv_backward_data_variants();

}  // namespace convnet
