// Local response normalisation and max-pooling.
#include "../kernels/lrn.hpp"
#include "../kernels/maxpool.hpp"

#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {

void register_normalise_pool(py::module_& m) {
  bind(m, "max_pool_forward", &max_pool_forward,
       {"shape", "precision", "x", "y", optional("argmax"), "stream"});
  bind(m, "max_pool_backward", &max_pool_backward,
       {"shape", "precision", "dy", "argmax", "dx", "stream"});
  bind(m, "lrn_forward", &lrn_forward, {"shape", "precision", "x", "y", "stream"});
  bind(m, "lrn_backward", &lrn_backward, {"shape", "precision", "dy", "x", "dx", "stream"});
}

}  // namespace convnet::bindings
