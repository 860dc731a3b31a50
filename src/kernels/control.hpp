// What changes from step to step, in device memory: launches that read it never change, so that they can be captured once.
#pragma once
#include <cstdint>

namespace convnet {

// convnet/control.py makes its twin of eight 32-bit words. The host uploads it whole in front of each step, with
// `stopped` = 0; softmax_cross_entropy sets `stopped` where a loss is not finite, and updates then change nothing.
struct Control {
  uint32_t step;
  float lr, momentum, weight_decay;
  uint32_t stopped;
  uint32_t unused[3];
};

}  // namespace convnet
