// One step of momentum SGD with weight decay, for all kernels that change weights.
//
// What       v = (momentum * v) - (lr * ((weight_decay * w) + g)); w = w + v. Every operation is
//            rounded on its own, so that any device, and NumPy, give the same bits: a resumed or
//            moved run does not drift, and neither does one whose gradients never reach memory.
#pragma once
#include "../arch/arch.cuh"
#include "../control.hpp"

namespace convnet {

// Of one tensor in this step.
struct Rates {
  float lr, momentum, weight_decay;
  bool stopped;  // nothing may be written
};

__device__ __forceinline__ Rates rates_of(const Control* control, float rate, bool decays) {
  return Rates{mul_rn(control->lr, rate), control->momentum, decays ? control->weight_decay : 0.0f,
               control->stopped != 0};
}

__device__ __forceinline__ void update(const Rates& rates,
                                       float& weight,
                                       float& velocity,
                                       float gradient) {
  const float slope = add_rn(mul_rn(rates.weight_decay, weight), gradient);
  velocity = sub_rn(mul_rn(rates.momentum, velocity), mul_rn(rates.lr, slope));
  weight = add_rn(weight, velocity);
}

__device__ __forceinline__ void update(const Rates& rates,
                                       float4& weight,
                                       float4& velocity,
                                       const float4& gradient) {
  update(rates, weight.x, velocity.x, gradient.x);
  update(rates, weight.y, velocity.y, gradient.y);
  update(rates, weight.z, velocity.z, gradient.z);
  update(rates, weight.w, velocity.w, gradient.w);
}

}  // namespace convnet
