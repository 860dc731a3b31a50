// The bfloat16 copy of a weight, which convolutions and linear layers read where activations are bfloat16.
#pragma once
#include "shapes.hpp"

namespace convnet {

// weight: `count` float32 values in rows of `columns`; copy: the same rows, rounded to nearest, each followed by zeros up to
// a multiple of 8. Element i of the weight is element i / columns * round_up(columns, 8) + i % columns of the copy.
void cast_weight(int64_t count, int64_t columns, const float* weight, bf16* copy, Stream stream);

}  // namespace convnet
