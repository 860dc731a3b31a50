// Costs beside softmax_cross_entropy (softmax.hpp): a loss for every image, and the gradient of their mean times a coefficient.
#pragma once
#include "control.hpp"
#include "shapes.hpp"

namespace convnet {

// x, targets and dx [N/L][K][L] by precision, K features; losses hold N values. For every image n < valid:
//
// sum_of_squares: losses[n] = sum of x^2                          dx (may be null) = 2 coefficient x / valid
//
// logistic_cross_entropy, of y = 1 / (1 + e^-x) and targets t from 0 to 1:
//   losses[n] = -sum of t max(log y, -50) + (1 - t) max(log(1 - y), -50)      dx (may be null) = coefficient (y - t) / valid
//
// Losses do not know the coefficient. They and gradients are computed in float32; images from `valid` on get 0. dx may be x.
// Where a loss is not finite, control->stopped becomes 1.
void sum_of_squares(const SoftmaxShape& shape,
                    Precision precision,
                    float coefficient,
                    const void* x,
                    float* losses,
                    void* dx,
                    Control* control,
                    Stream stream);

void logistic_cross_entropy(const SoftmaxShape& shape,
                            Precision precision,
                            float coefficient,
                            const void* x,
                            const void* targets,
                            float* losses,
                            void* dx,
                            Control* control,
                            Stream stream);

constexpr float kLeastLog = 50.0f;  // -log y is at most this, as in the 2012 program

}  // namespace convnet
