// Small elementwise helpers on `count` contiguous values by precision; outputs may be inputs.
#pragma once
#include "shapes.hpp"

namespace convnet {

void add(int64_t count,
         Precision precision,
         const void* a,
         const void* b,
         void* y,
         Stream stream);  // y = a + b
void scale(int64_t count,
           Precision precision,
           const void* x,
           float factor,
           void* y,
           Stream stream);  // y = x * factor

}  // namespace convnet
