// What changes from step to step, in device memory: launches that read it never change, so that they can be captured once.
#pragma once
#include <cstdint>

namespace convnet {

// convnet/kernels/control.py makes its twin of eight 32-bit words. The host uploads it whole in front of each step, with
// `stopped` and `spoiled` = 0. softmax_cross_entropy sets `stopped` where a loss is not finite, and updates then change
// nothing. Updates set `spoiled` where a gradient is not finite, and leave that weight as it is. Where a step is shared
// out, a launch sees some of its images: `first` is the place of its own first one among all, from which random numbers
// are drawn, and `images` how many there are, by which the gradients of mean losses are divided; 0: those it sees.
struct Control {
  uint32_t step;
  float lr, momentum, weight_decay;
  uint32_t stopped, spoiled;
  uint32_t first, images;
};

// How a tensor's rates differ from those of the control block: what its lr, weight_decay and momentum are multiplied by.
struct Factors {
  float rate, decay, momentum;
};

}  // namespace convnet
