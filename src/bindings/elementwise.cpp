// What works on every value alone: ReLU, tanh, sums and factors, dropout.
#include "../kernels/dropout.hpp"
#include "../kernels/pointwise.hpp"
#include "../kernels/relu.hpp"
#include "../kernels/tanh.hpp"

#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {

void register_elementwise(py::module_& m) {
  bind(m, "relu_forward", &relu_forward, {"count", "precision", "x", "y", "stream"});
  bind(m, "relu_backward", &relu_backward, {"count", "precision", "dy", "y", "dx", "stream"});
  bind(m, "tanh_forward", &tanh_forward, {"count", "precision", "x", "y", "stream"});
  bind(m, "tanh_backward", &tanh_backward, {"count", "precision", "dy", "y", "dx", "stream"});
  bind(m, "add", &add, {"count", "precision", "a", "b", "y", "stream"});
  bind(m, "scale", &scale, {"count", "precision", "x", "factor", "y", "stream"});
  bind(m, "dropout_forward", &dropout_forward,
       {"shape", "precision", "x", "y", "mask", "control", "stream"});
  bind(m, "dropout_backward", &dropout_backward,
       {"count", "precision", "dy", "mask", "dx", "stream"});
}

}  // namespace convnet::bindings
