// Softmax with cross-entropy loss, its gradient and the rank of the true class. logits, probs, dlogits [N/L][K][L].
#pragma once
#include "control.hpp"
#include "shapes.hpp"

namespace convnet {

// For every image n < valid, with label labels[n]:
//   losses[n] = -log softmax(logits)[label]      ranks[n] = number of classes before the label when sorted by logit, descending,
//   equal logits by index: top-k error is rank >= k. NaN comes before the label, and all classes before a label that is NaN.
//   probs (may be null) = softmax(logits)        dlogits (may be null) = (probs - onehot) / valid: gradient of the mean loss, / images where control says how many
// losses and ranks hold N values; images from `valid` on get 0 everywhere. Labels outside 0..K-1 give NaN loss, gradient and rank K.
// Where a loss is not finite, control->stopped becomes 1.
void softmax_cross_entropy(const SoftmaxShape& shape,
                           Precision precision,
                           const void* logits,
                           const int32_t* labels,
                           float* losses,
                           int32_t* ranks,
                           float* probs,
                           void* dlogits,
                           Control* control,
                           Stream stream);

}  // namespace convnet
