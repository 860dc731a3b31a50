// dx: the gradient of a convolution with respect to its input.
#pragma once
#include "shapes.hpp"

namespace convnet {

// dy [N/L][K][P][Q][L], weight [g][C/g][R][S][K/g] -> dx [N/L][C][H][W][L], every element written (0 where no window reads it).
void conv_backward_data(const ConvShape& shape,
                        Precision precision,
                        const void* dy,
                        const void* weight,
                        void* dx,
                        Stream stream);

}  // namespace convnet
