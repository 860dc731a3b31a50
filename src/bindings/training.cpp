// The two ends of a training step and its last: ingest, losses, update, and the bfloat16 copy of a weight.
#include "../kernels/cast.hpp"
#include "../kernels/costs.hpp"
#include "../kernels/fold.hpp"
#include "../kernels/ingest.hpp"
#include "../kernels/ingest_planar.hpp"
#include "../kernels/pack.hpp"
#include "../kernels/sgd.hpp"
#include "../kernels/softmax.hpp"

#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {

template <>
inline constexpr const char* kKind<Updates> = "updates";

std::optional<Folded> to_folded(const Place& place, const py::object& value) {
  if (value.is_none()) return std::nullopt;
  if (!py::isinstance<py::tuple>(value) || py::len(value) != 2)
    throw py::type_error(message(describe(place), " must be a shape and a precision, got ",
                                 py::repr(value).cast<std::string>()));
  const auto [shape, precision] = value.cast<std::tuple<py::object, py::object>>();
  return Folded{to_shape<ConvShape>(place, shape), to_precision(place, precision)};
}

// A sequence of tuples: what sgd takes, without the control block and the stream, and of a folded weight shape and
// precision, else None.
template <>
Updates to_shape(const Place& place, py::handle object) {
  const auto at = [&](const char* field) { return Place{place.function, place.argument, field}; };
  Updates updates{};
  for (const py::handle item : py::reinterpret_borrow<py::iterable>(object)) {
    require(updates.count < kMostUpdates, place.function, ": takes at most ", kMostUpdates,
            " tensors; update the rest in another call");
    if (!py::isinstance<py::tuple>(item) || py::len(item) != 10)
      throw py::type_error(message(describe(place), " must be tuples of ten, got ",
                                   py::repr(item).cast<std::string>()));
    const auto [count, weight, velocity, gradient, copy, columns, rate, decay, momentum, folded] =
        item.cast<std::tuple<py::object, py::object, py::object, py::object, py::object, py::object,
                             py::object, py::object, py::object, py::object>>();
    const auto address = [&](const char* field, const py::object& value, bool may_be_null) {
      return to_address(at(field), value, may_be_null,
                        std::min<std::size_t>(16, largest_alignment()));
    };
    updates.tensor[updates.count++] = {
        static_cast<std::int64_t>(to_unsigned(at("count"), count, std::uint64_t{1} << 40)),
        reinterpret_cast<float*>(address("weight", weight, false)),
        reinterpret_cast<float*>(address("velocity", velocity, false)),
        reinterpret_cast<const float*>(address("gradient", gradient, false)),
        reinterpret_cast<void*>(address("copy", copy, true)),
        static_cast<std::int64_t>(to_unsigned(at("columns"), columns, std::uint64_t{1} << 40)),
        {to_float(at("rate"), rate), to_float(at("decay"), decay),
         to_float(at("momentum"), momentum)},
        to_folded(at("folded"), folded)};
  }
  return updates;
}

template <>
inline constexpr const char* kKind<Cost> = "cost";

// One of the names of costs.
template <>
struct Argument<Cost> {
  using Python = py::object;
  static Row row(const Name& name) { return {name.text, kKind<Cost>, false, false}; }
  static Cost convert(const char* function, const Name& name, const py::object& value) {
    static const std::map<std::string, Cost> kinds{
        {"squares", Cost::squares},
        {"squared-error", Cost::squared_error},
        {"log-squared-error", Cost::log_squared_error},
        {"cross-entropy", Cost::cross_entropy},
        {"logistic-cross-entropy", Cost::logistic_cross_entropy}};
    const auto found =
        kinds.find(py::isinstance<py::str>(value) ? py::cast<std::string>(value) : "");
    require(found != kinds.end(), function, ": ", name.text, " must be the name of a cost, got ",
            py::repr(value).cast<std::string>());
    return found->second;
  }
};

void register_training(py::module_& m) {
  bind(m, "ingest", &ingest,
       {"shape", "precision", "images", "windows", "noise", "mean", "y", "stream"});
  bind(m, "ingest_planar", &ingest_planar,
       {"shape", "precision", "luma", "cb", "cr", "index", "windows", "noise", "mean", "y",
        "stream"});
  bind(m, "pack", &pack, {"shape", "precision", "x", "y", "stream"});
  bind(m, "softmax_cross_entropy", &softmax_cross_entropy,
       {"shape", "precision", "logits", "labels", "losses", "ranks", optional("probs"),
        optional("dlogits"), "control", "stream"});
  bind(m, "cost", &cost,
       {"shape", "precision", "cost", "coefficient", "x", optional("labels"), "losses",
        optional("dx"), "control", "stream"});
  bind(m, "sgd", &sgd,
       {"count", "weight", "velocity", "gradient", optional("copy"), "columns", "control", "rate",
        "decay", "momentum", "stream"});
  bind(m, "sgd_many", &sgd_many, {"updates", "control", "stream"});
  bind(m, "cast_weight", &cast_weight, {"count", "columns", "weight", "copy", "stream"});
  bind(m, "fold_weight", &fold_weight, {"shape", "precision", "weight", "copy", "stream"});
  bind(m, "unfold_gradient", &unfold_gradient, {"shape", "folded", "gradient", "stream"});
}

}  // namespace convnet::bindings
