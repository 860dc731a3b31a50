// The three passes of a local convolution, and biases for every pixel behind another one.
#include "../kernels/local.hpp"
#include "../kernels/position_bias.hpp"

#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {

void register_local(py::module_& m) {
  bind(m, "local_forward", &local_forward,
       {"shape", "precision", "x", "weight", optional("bias"), "y", "relu", "stream"});
  bind(m, "local_backward_data", &local_backward_data,
       {"shape", "precision", "dy", "weight", "dx", optional("mask"), "stream"});
  bind(m, "local_backward_filter", &local_backward_filter,
       {"shape", "precision", "dy", "x", "dweight", optional("dbias"), "stream"});
  bind(m, "add_position_bias", &add_position_bias,
       {"shape", "precision", "x", "bias", "y", "stream"});
  bind(m, "add_position_bias_backward", &add_position_bias_backward,
       {"shape", "precision", "dy", "dbias", "stream"});
}

}  // namespace convnet::bindings
