// Small elementwise helpers on `count` contiguous float32 values; outputs may be inputs.
#pragma once
#include "shapes.hpp"

namespace convnet {

void add(int64_t count, const float* a, const float* b, float* y, Stream stream);  // y = a + b
void scale(int64_t count, const float* x, float factor, float* y, Stream stream);  // y = x * factor

}  // namespace convnet
