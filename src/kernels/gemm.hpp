// Fully-connected layers: three matrix products. x [N/L][C][L], weight [C][K], y [N/L][K][L].
#pragma once
#include "shapes.hpp"

namespace convnet {

// Bytes of scratch memory that each of the three passes may need (one buffer serves all).
int64_t linear_workspace(const LinearShape& shape);

// y = weight^T x + bias (null: none), then ReLU where asked. The order of the sums depends on C alone.
void linear_forward(const LinearShape& shape,
                    const float* x,
                    const float* weight,
                    const float* bias,
                    float* y,
                    bool relu,
                    float* workspace,
                    Stream stream);

// dx = weight dy
void linear_backward_data(const LinearShape& shape,
                          const float* dy,
                          const float* weight,
                          float* dx,
                          float* workspace,
                          Stream stream);

// dweight = x dy^T, dbias (null: not wanted) = row sums of dy; both summed over the images in a fixed order.
void linear_backward_filter(const LinearShape& shape,
                            const float* dy,
                            const float* x,
                            float* dweight,
                            float* dbias,
                            float* workspace,
                            Stream stream);

}  // namespace convnet
