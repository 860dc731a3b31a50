// The two ends of a training step and its last: ingest, loss, update, and the bfloat16 copy of a weight.
#include "../kernels/cast.hpp"
#include "../kernels/fold.hpp"
#include "../kernels/ingest.hpp"
#include "../kernels/ingest_planar.hpp"
#include "../kernels/sgd.hpp"
#include "../kernels/softmax.hpp"

#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {

void register_training(py::module_& m) {
  bind(m, "ingest", &ingest,
       {"shape", "precision", "images", "windows", "noise", "mean", "y", "stream"});
  bind(m, "ingest_planar", &ingest_planar,
       {"shape", "precision", "luma", "cb", "cr", "index", "windows", "noise", "mean", "y",
        "stream"});
  bind(m, "softmax_cross_entropy", &softmax_cross_entropy,
       {"shape", "precision", "logits", "labels", "losses", "ranks", optional("probs"),
        optional("dlogits"), "stream"});
  bind(m, "sgd", &sgd,
       {"count", "weight", "velocity", "gradient", optional("copy"), "columns", "lr", "momentum",
        "weight_decay", "stream"});
  bind(m, "cast_weight", &cast_weight, {"count", "columns", "weight", "copy", "stream"});
  bind(m, "fold_weight", &fold_weight, {"shape", "weight", "copy", "stream"});
  bind(m, "unfold_gradient", &unfold_gradient, {"shape", "folded", "gradient", "stream"});
}

}  // namespace convnet::bindings
