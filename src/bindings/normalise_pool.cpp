// Normalisation, pooling, and what shrinks images on their way in.
#include "../kernels/avgpool.hpp"
#include "../kernels/blur.hpp"
#include "../kernels/lrn.hpp"
#include "../kernels/lrn_pool_backward.hpp"
#include "../kernels/lrn_pool_forward.hpp"
#include "../kernels/maxpool.hpp"
#include "../kernels/nailbed.hpp"
#include "../kernels/randpool.hpp"
#include "../kernels/spatial_norm.hpp"

#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {

void register_normalise_pool(py::module_& m) {
  bind(m, "max_pool_forward", &max_pool_forward,
       {"shape", "precision", "x", "y", optional("argmax"), "stream"});
  bind(m, "max_pool_backward", &max_pool_backward,
       {"shape", "precision", "dy", "argmax", optional("mask"), "dx", "stream"});
  bind(m, "avg_pool_forward", &avg_pool_forward, {"shape", "precision", "x", "y", "stream"});
  bind(m, "avg_pool_backward", &avg_pool_backward,
       {"shape", "precision", "dy", optional("mask"), "dx", "stream"});
  bind(m, "rand_pool_forward", &rand_pool_forward,
       {"shape", "draw", "precision", "x", "y", optional("argmax"), "control", "stream"});
  bind(m, "rand_pool_mean", &rand_pool_mean, {"shape", "precision", "x", "y", "stream"});
  bind(m, "rnorm_forward", &rnorm_forward, {"shape", "precision", "x", "y", "stream"});
  bind(m, "rnorm_backward", &rnorm_backward,
       {"shape", "precision", "dy", "x", "dx", optional("workspace"), "stream"});
  bind(m, "rnorm_workspace", &rnorm_workspace, {"shape", "precision"});
  bind(m, "cnorm_forward", &cnorm_forward,
       {"shape", "precision", "x", "y", optional("workspace"), "stream"});
  bind(m, "cnorm_backward", &cnorm_backward,
       {"shape", "precision", "dy", "x", "dx", optional("workspace"), "stream"});
  bind(m, "cnorm_workspace", &cnorm_workspace, {"shape", "precision"});
  bind(m, "blur", &blur, {"shape", "precision", "x", "y", "stream"});
  bind(m, "nailbed_forward", &nailbed_forward, {"shape", "precision", "x", "y", "stream"});
  bind(m, "nailbed_backward", &nailbed_backward, {"shape", "precision", "dy", "dx", "stream"});
  bind(m, "lrn_forward", &lrn_forward, {"shape", "precision", "x", "y", "stream"});
  bind(m, "lrn_backward", &lrn_backward, {"shape", "precision", "dy", "x", "dx", "stream"});
  bind(m, "lrn_pool_forward", &lrn_pool_forward,
       {"lrn", "pool", "precision", "x", "p", optional("argmax"), "stream"});
  bind(m, "lrn_pool_backward", &lrn_pool_backward,
       {"lrn", "pool", "precision", "dp", "argmax", "x", "dx", "relu", "stream"});
}

}  // namespace convnet::bindings
