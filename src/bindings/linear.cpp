// The three passes of a fully-connected layer.
#include "../kernels/gemm.hpp"

#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {

void register_linear(py::module_& m) {
  bind(m, "linear_forward", &linear_forward,
       {"shape", "precision", "x", "weight", optional("bias"), "y", "relu", "dropout",
        optional("control"), optional("workspace"), "accumulate", "stream"});
  bind(m, "linear_backward_data", &linear_backward_data,
       {"shape", "precision", "dy", "weight", "dx", optional("mask"), optional("workspace"),
        "stream"});
  bind(m, "linear_backward_filter", &linear_backward_filter,
       {"shape", "precision", "dy", "x", "dweight", optional("dbias"), optional("workspace"),
        "stream"});
  bind(m, "linear_backward_filter_update", &linear_backward_filter_update,
       {"shape", "precision", "dy", "x", "weight", "velocity", optional("copy"), optional("dbias"),
        "control", "rate", "decay", "momentum", optional("workspace"), "stream"});
  bind(m, "linear_workspace", &linear_workspace, {"shape", "precision"});
}

}  // namespace convnet::bindings
