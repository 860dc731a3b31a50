// What changes from step to step, in device memory: launches that read it never change, so that they can be captured once.
#pragma once
#include <cstdint>

namespace convnet {

// convnet/kernels/control.py makes its twin of eight 32-bit words. The host uploads it whole in front of each step, with
// `stopped` and `spoiled` = 0. softmax_cross_entropy sets `stopped` where a loss is not finite, and updates then change
// nothing. Updates set `spoiled` where a gradient is not finite, and leave that weight as it is.
struct Control {
  uint32_t step;
  float lr, momentum, weight_decay;
  uint32_t stopped, spoiled;
  uint32_t unused[2];
};

// How a tensor's rates differ from those of the control block: what its lr, weight_decay and momentum are multiplied by.
struct Factors {
  float rate, decay, momentum;
};

}  // namespace convnet
