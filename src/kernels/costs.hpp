// Costs beside softmax_cross_entropy (softmax.hpp): a loss for every image, and the gradient of their mean times a coefficient.
#pragma once
#include "control.hpp"
#include "shapes.hpp"

namespace convnet {

// losses[n] = the sum over all K features x of term, and dx = coefficient slope / valid, of every image n < valid, whose true
// class is labels[n]: t is 1 for that feature and 0 for the others. Where control says how many images there are, it is
// coefficient slope / images.
//
//   kind                     term                                                            slope
//   squares                  x^2                                                             2 x
//   squared_error            (x - t)^2                                                       2 (x - t)
//   log_squared_error        log(1 + (x - t)^2)                                              2 (x - t) / (1 + (x - t)^2)
//   cross_entropy            -max(log x, -50) where t is 1, -max(log(1 - x), -50) elsewhere  -1 / x or 1 / (1 - x), 0 at -50
//   logistic_cross_entropy   the same of y = 1 / (1 + e^-x)                                  y - t
//
// cross_entropy of an x that does not lie in 0..1 is NaN, and so is its slope.
enum class Cost {
  squares,
  squared_error,
  log_squared_error,
  cross_entropy,
  logistic_cross_entropy
};

constexpr float kLeastLog = 50.0f;  // -log y is at most this, as in the 2012 program

// x and dx [N/L][K][L] by precision; labels (null for squares alone) and losses hold N values. Losses do not know the
// coefficient. They and gradients are computed in float32; images from `valid` on get 0. dx may be null, or x. Labels outside
// 0..K-1 give NaN loss and gradient. Where a loss is not finite, control->stopped becomes 1.
void cost(const SoftmaxShape& shape,
          Precision precision,
          Cost kind,
          float coefficient,
          const void* x,
          const int32_t* labels,
          float* losses,
          void* dx,
          Control* control,
          Stream stream);

}  // namespace convnet
