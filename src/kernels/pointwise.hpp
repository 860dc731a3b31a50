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

// y = alpha a + beta b, each operation rounded on its own
void weighted_add(int64_t count,
                  Precision precision,
                  const void* a,
                  float alpha,
                  const void* b,
                  float beta,
                  void* y,
                  Stream stream);

// y = the larger of a and b; NaN where either is
void maximum(
    int64_t count, Precision precision, const void* a, const void* b, void* y, Stream stream);

// dx = dy where x is y, the maximum of x and others, else 0: all that are equal to it get dy, as in the 2012 program
void maximum_backward(int64_t count,
                      Precision precision,
                      const void* dy,
                      const void* x,
                      const void* y,
                      void* dx,
                      Stream stream);

}  // namespace convnet
