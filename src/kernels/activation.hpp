// The activations of the 2012 program ("neurons") on `count` contiguous values by precision; y may be x, dx may be dy.
#pragma once
#include "shapes.hpp"

namespace convnet {

// y = f(x), and what dx = dy f'(x) reads beside dy, `saved`: the input, the output, or neither. a and b are parameters of
// some; the others do not look at them.
//
//   kind      f(x)                                f'(x)                         saved
//   relu      max(x, 0)                           y > 0 ? 1 : 0                 y
//   tanh      a tanh(b x), a not 0                a b - y y (b / a)             y
//   logistic  1 / (1 + e^-x)                      y (1 - y)                     y
//   linear    a x + b                             a                             -
//   softrelu  x > 4 ? x : log(1 + e^x)            x > 4 ? 1 : 1 / (1 + e^-x)    x
//   brelu     min(a, max(0, x)), a above 0        0 < x < a ? 1 : 0             x
//   abs       |x|                                 x > 0 ? 1 : -1                x
//   square    x x                                 2 x                           x
//   sqrt      sqrt(x)                             1 / (2 y)                     y
//
// Every operation is rounded on its own, and the factor last times dy; for sqrt, dy is divided by 2 y. The exponentials are
// those of -|x|, so that none overflows. NaN stays NaN. relu's bits are those of relu_forward and relu_backward.
enum class Activation { relu, tanh, logistic, linear, softrelu, brelu, abs, square, sqrt };

constexpr float kSoftreluIsLinear =
    4.0f;  // from behind it on, as in the 2012 program: a step of 0.018

void activation_forward(int64_t count,
                        Precision precision,
                        Activation kind,
                        float a,
                        float b,
                        const void* x,
                        void* y,
                        Stream stream);

// saved may be null for linear alone.
void activation_backward(int64_t count,
                         Precision precision,
                         Activation kind,
                         float a,
                         float b,
                         const void* dy,
                         const void* saved,
                         void* dx,
                         Stream stream);

}  // namespace convnet
