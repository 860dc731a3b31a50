// The two ends of a training step and its last: ingest, loss, update.
#include "../kernels/ingest.hpp"
#include "../kernels/sgd.hpp"
#include "../kernels/softmax.hpp"

#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {

void register_training(py::module_& m) {
  bind(m, "ingest", &ingest, {"shape", "images", "windows", "noise", "mean", "y", "stream"});
  bind(m, "softmax_cross_entropy", &softmax_cross_entropy,
       {"shape", "logits", "labels", "losses", "ranks", optional("probs"), optional("dlogits"),
        "stream"});
  bind(m, "sgd", &sgd,
       {"count", "weight", "velocity", "gradient", "lr", "momentum", "weight_decay", "stream"});
}

}  // namespace convnet::bindings
