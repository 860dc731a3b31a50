// Momentum SGD with weight decay, the paper's update, in place on contiguous float32 values.
#pragma once
#include <optional>

#include "control.hpp"
#include "shapes.hpp"

namespace convnet {

// Of the weight of a folded convolution, whose products write the gradient and read the copy: both lie folded (fold.hpp).
// What is computed are the bits of unfold_gradient, the update and fold_weight, one behind the other, but in the copy all
// that has no original stays as it is, too. There must be a copy then, and `columns` may be anything.
struct Folded {
  ConvShape shape;      // before folding
  Precision precision;  // of the products
};

// One tensor of `count` values:
//   v <- momentum * v - lr * (weight_decay * w + g);  w <- w + v, each operation rounded to float32 in this order (no FMA):
//   v = (momentum * v) - (lr * ((weight_decay * w) + g))
// lr, weight_decay and momentum are those of the control block, each times its factor. Where weight_decay is 0, w
// counts as 0 in the first line: a weight that is not finite spoils no velocity.
// copy (may be null): the new weight in bfloat16, rows of `columns` values padded as by cast_weight, which also writes the
// zeros between them: here they stay as they are. Without a copy `columns` may be anything.
// Where g is not finite, w and v stay as they are and the control block gets `spoiled`.
struct Update {
  int64_t count;
  float* weight;
  float* velocity;
  const float* gradient;
  void* copy;
  int64_t columns;
  Factors factors;
  std::optional<Folded> folded;
};

constexpr int kMostUpdates = 32;

struct Updates {
  int count;
  Update tensor[kMostUpdates];
};

// All tensors in one launch; nothing changes where control says `stopped`.
void sgd_many(const Updates& updates, Control* control, Stream stream);

// One tensor.
void sgd(int64_t count,
         float* weight,
         float* velocity,
         const float* gradient,
         bf16* copy,
         int64_t columns,
         Control* control,
         float rate,
         float decay,
         float momentum,
         Stream stream);

}  // namespace convnet
