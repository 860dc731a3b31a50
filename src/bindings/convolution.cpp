// The three passes of a convolution.
#include "../kernels/conv_backward_data.hpp"
#include "../kernels/conv_backward_filter.hpp"
#include "../kernels/conv_forward.hpp"

#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {

void register_convolution(py::module_& m) {
  bind(
      m, "conv_forward", &conv_forward,
      {"shape", "precision", "x", "weight", optional("bias"), "y", "relu", "accumulate", "stream"});
  bind(m, "conv_backward_data", &conv_backward_data,
       {"shape", "precision", "dy", "weight", "dx", optional("mask"), "stream"});
  bind(m, "conv_backward_filter", &conv_backward_filter,
       {"shape", "precision", "dy", "x", "dweight", optional("dbias"), optional("workspace"),
        "stream"});
  bind(m, "conv_backward_filter_workspace", &conv_backward_filter_workspace,
       {"shape", "precision"});
}

}  // namespace convnet::bindings
