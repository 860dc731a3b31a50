// Local response normalisation and max-pooling.
#include "../kernels/lrn.hpp"
#include "../kernels/lrn_pool_backward.hpp"
#include "../kernels/lrn_pool_forward.hpp"
#include "../kernels/maxpool.hpp"

#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {

void register_normalise_pool(py::module_& m) {
  bind(m, "max_pool_forward", &max_pool_forward,
       {"shape", "precision", "x", "y", optional("argmax"), "stream"});
  bind(m, "max_pool_backward", &max_pool_backward,
       {"shape", "precision", "dy", "argmax", optional("mask"), "dx", "stream"});
  bind(m, "lrn_forward", &lrn_forward, {"shape", "precision", "x", "y", "stream"});
  bind(m, "lrn_backward", &lrn_backward, {"shape", "precision", "dy", "x", "dx", "stream"});
  bind(m, "lrn_pool_forward", &lrn_pool_forward,
       {"lrn", "pool", "precision", "x", "p", optional("argmax"), "stream"});
  bind(m, "lrn_pool_backward", &lrn_pool_backward,
       {"lrn", "pool", "precision", "dp", "argmax", "x", "dx", "relu", "stream"});
}

}  // namespace convnet::bindings
