// What works on every value alone: activations, sums, maxima and factors, dropout; channels picked by a table.
#include "../kernels/activation.hpp"
#include "../kernels/dropout.hpp"
#include "../kernels/gather_channels.hpp"
#include "../kernels/pointwise.hpp"
#include "../kernels/relu.hpp"

#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {

template <>
inline constexpr const char* kKind<Activation> = "kind";

// One of the names of activations.
template <>
struct Argument<Activation> {
  using Python = py::object;
  static Row row(const Name& name) { return {name.text, kKind<Activation>, false, false}; }
  static Activation convert(const char* function, const Name& name, const py::object& value) {
    static const std::map<std::string, Activation> kinds{
        {"relu", Activation::relu},         {"tanh", Activation::tanh},
        {"logistic", Activation::logistic}, {"linear", Activation::linear},
        {"softrelu", Activation::softrelu}, {"brelu", Activation::brelu},
        {"abs", Activation::abs},           {"square", Activation::square},
        {"sqrt", Activation::sqrt}};
    const auto found =
        kinds.find(py::isinstance<py::str>(value) ? py::cast<std::string>(value) : "");
    require(found != kinds.end(), function, ": ", name.text,
            " must be the name of an activation, got ", py::repr(value).cast<std::string>());
    return found->second;
  }
};

void register_elementwise(py::module_& m) {
  bind(m, "relu_forward", &relu_forward, {"count", "precision", "x", "y", "stream"});
  bind(m, "relu_backward", &relu_backward, {"count", "precision", "dy", "y", "dx", "stream"});
  bind(m, "activation_forward", &activation_forward,
       {"count", "precision", "kind", "a", "b", "x", "y", "stream"});
  bind(m, "activation_backward", &activation_backward,
       {"count", "precision", "kind", "a", "b", "dy", optional("saved"), "dx", "stream"});
  bind(m, "add", &add, {"count", "precision", "a", "b", "y", "stream"});
  bind(m, "scale", &scale, {"count", "precision", "x", "factor", "y", "stream"});
  bind(m, "weighted_add", &weighted_add,
       {"count", "precision", "a", "alpha", "b", "beta", "y", "stream"});
  bind(m, "maximum", &maximum, {"count", "precision", "a", "b", "y", "stream"});
  bind(m, "maximum_backward", &maximum_backward,
       {"count", "precision", "dy", "x", "y", "dx", "stream"});
  bind(m, "gather_channels", &gather_channels, {"shape", "precision", "x", "table", "y", "stream"});
  bind(m, "gather_channels_backward", &gather_channels_backward,
       {"shape", "precision", "dy", "starts", "places", "dx", "stream"});
  bind(m, "dropout_forward", &dropout_forward,
       {"shape", "precision", "x", "y", "mask", "control", "stream"});
  bind(m, "dropout_backward", &dropout_backward,
       {"count", "precision", "dy", "mask", "dx", "stream"});
}

}  // namespace convnet::bindings
