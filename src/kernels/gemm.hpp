// Fully-connected layers: three matrix products. x [N/L][C][L], weight [C][K], y [N/L][K][L].
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "control.hpp"
#include "shapes.hpp"
#include "variants.hpp"

namespace convnet {

// Bytes of scratch memory that each of the three passes may need (one buffer serves all).
int64_t linear_workspace(const LinearShape& shape, Precision precision);

// y = weight^T x + bias (null: none), then ReLU and dropout where asked. The order of the sums depends on C alone.
// With `accumulate`, what y held before is added behind the bias, as it was stored, in front of ReLU and dropout.
// Dropout of y gives the bits of dropout_forward at the step of `control`, without a mask (behind a ReLU y > 0 says as much),
// and at test, where `control` is null, those of scale by 1 - p.
void linear_forward(const LinearShape& shape,
                    Precision precision,
                    const void* x,
                    const void* weight,
                    const float* bias,
                    void* y,
                    bool relu,
                    const std::optional<DropoutShape>& dropout,
                    const Control* control,
                    float* workspace,
                    bool accumulate,
                    Stream stream);

// dx = weight dy; with mask [N/L][C][L], x where a ReLU made it: 0 where x > 0 does not hold, the bits of relu_backward.
void linear_backward_data(const LinearShape& shape,
                          Precision precision,
                          const void* dy,
                          const void* weight,
                          void* dx,
                          const void* mask,
                          float* workspace,
                          Stream stream);

// dweight = x dy^T, dbias (null: not wanted) = row sums of dy; both summed over the images in a fixed order.
void linear_backward_filter(const LinearShape& shape,
                            Precision precision,
                            const void* dy,
                            const void* x,
                            float* dweight,
                            float* dbias,
                            float* workspace,
                            Stream stream);

// The same dweight, which is stored nowhere but updates weight and velocity in place, and makes their copy (null: none),
// to the bits of sgd (sgd.hpp); dbias as above. Where control says `stopped`, nothing but dbias changes.
// Where a gradient is not finite, that weight stays, and control gets `spoiled`.
void linear_backward_filter_update(const LinearShape& shape,
                                   Precision precision,
                                   const void* dy,
                                   const void* x,
                                   float* weight,
                                   float* velocity,
                                   bf16* copy,
                                   float* dbias,
                                   Control* control,
                                   float rate,
                                   float decay,
                                   float momentum,
                                   float* workspace,
                                   Stream stream);

// The kernels that they take, and all that there are.
std::string linear_forward_variant(const LinearShape& shape, Precision precision);
std::string linear_backward_data_variant(const LinearShape& shape, Precision precision);
std::string linear_backward_filter_variant(const LinearShape& shape, Precision precision);
std::vector<VariantRow> linear_variants();

}  // namespace convnet
