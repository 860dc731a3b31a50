// Python values to C++ values: integers, addresses and the shapes of convnet/kernels/shapes.py.
#include <initializer_list>
#include <limits>

#include "bind.hpp"

namespace convnet::bindings {
namespace {

// Launchers compute in 64 bits and check afterwards, which is right as long as nothing overflows: products of two
// extents cannot, nor those of the extents of a tensor with a few small factors.
constexpr std::uint64_t kLargestExtent = std::numeric_limits<std::int32_t>::max();
constexpr std::uint64_t kLargestTensor = std::uint64_t{1} << 40;

std::string type_name(py::handle value) { return Py_TYPE(value.ptr())->tp_name; }

// Reads the fields of a shape by name.
class Fields {
 public:
  Fields(const Place& place, py::handle object) : place_(place), object_(object) {}

  std::int64_t extent(const char* name) const {
    return static_cast<std::int64_t>(to_unsigned(at(name), field(name), kLargestExtent));
  }
  float real(const char* name) const { return to_float(at(name), field(name)); }
  // Three numbers, one for each channel.
  std::array<float, 3> channels(const char* name) const {
    const py::object value = field(name);
    if (!py::isinstance<py::sequence>(value) || py::len(value) != 3)
      throw py::type_error(message(describe(at(name)), " must be three numbers, got ",
                                   py::repr(value).cast<std::string>()));
    return {to_float(at(name), value[py::int_(0)]), to_float(at(name), value[py::int_(1)]),
            to_float(at(name), value[py::int_(2)])};
  }
  std::uint64_t u64(const char* name) const {
    return to_unsigned(at(name), field(name), std::numeric_limits<std::uint64_t>::max());
  }
  // Throws unless a tensor of these extents, each at least 1, has few enough values.
  void tensor(std::initializer_list<std::int64_t> extents) const {
    std::uint64_t values = 1;
    std::string sizes;
    for (const std::int64_t extent : extents) {
      const auto factor = static_cast<std::uint64_t>(extent > 0 ? extent : 1);
      values = factor <= kLargestTensor / values ? values * factor : kLargestTensor + 1;
      sizes += (sizes.empty() ? "" : "x") + std::to_string(extent);
      require(values <= kLargestTensor, describe(place_), " must describe tensors of at most ",
              kLargestTensor, " values, got one of ", sizes, " or more; use a smaller batch");
    }
  }
  std::uint32_t u32(const char* name) const {
    return static_cast<std::uint32_t>(
        to_unsigned(at(name), field(name), std::numeric_limits<std::uint32_t>::max()));
  }

 private:
  Place at(const char* name) const { return {place_.function, place_.argument, name}; }

  py::object field(const char* name) const {
    if (!py::hasattr(object_, name))
      throw py::type_error(message(describe(place_),
                                   " must be a shape of convnet.kernels.shapes with a field ", name,
                                   ", got ", type_name(object_)));
    return object_.attr(name);
  }

  Place place_;
  py::handle object_;
};

}  // namespace

std::string describe(const Place& place) {
  return message(place.function, ": ", place.argument, place.field ? "." : "",
                 place.field ? place.field : "");
}

std::uint64_t to_unsigned(const Place& place, py::handle value, std::uint64_t largest) {
  const auto integer = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!integer) {
    PyErr_Clear();
    throw py::type_error(message(describe(place), " must be an int, got ", type_name(value)));
  }
  const std::uint64_t converted = PyLong_AsUnsignedLongLong(integer.ptr());
  const bool failed = PyErr_Occurred() != nullptr;  // negative, or more than 64 bits
  if (failed) PyErr_Clear();
  if (failed || converted > largest)
    throw py::value_error(message(describe(place), " must be at least 0 and at most ", largest,
                                  ", got ", py::str(integer).cast<std::string>()));
  return converted;
}

float to_float(const Place& place, py::handle value) {
  const double converted = PyFloat_AsDouble(value.ptr());
  if (PyErr_Occurred()) {
    PyErr_Clear();
    throw py::type_error(message(describe(place), " must be a number, got ", type_name(value)));
  }
  return static_cast<float>(converted);
}

std::uintptr_t to_address(const Place& place,
                          py::handle value,
                          bool may_be_null,
                          std::size_t alignment) {
  const std::uintptr_t address =
      value.is_none() ? 0 : to_unsigned(place, value, std::numeric_limits<std::uintptr_t>::max());
  require(may_be_null || address != 0, describe(place), " is required, got a null address");
  require(address % alignment == 0, describe(place), " must be aligned to ", alignment,
          " bytes, got address ", address, "; pass the start of an array of a device");
  return address;
}

Precision to_precision(const Place& place, py::handle value) {
  const std::string name = py::isinstance<py::str>(value) ? py::cast<std::string>(value) : "";
  if (name == "fp32") return Precision::fp32;
  if (name == "tf32") return Precision::tf32;
  require(name == "bf16", describe(place), " must be \"fp32\", \"tf32\" or \"bf16\", got ",
          py::repr(value).cast<std::string>());
  return Precision::bf16;
}

template <>
ConvShape to_shape(const Place& place, py::handle object) {
  const Fields f(place, object);
  const ConvShape s{f.extent("N"),      f.extent("C"),       f.extent("H"),
                    f.extent("W"),      f.extent("K"),       f.extent("R"),
                    f.extent("S"),      f.extent("P"),       f.extent("Q"),
                    f.extent("stride"), f.extent("pad_top"), f.extent("pad_left"),
                    f.extent("groups"), f.extent("lanes")};
  f.tensor({s.N, s.C, s.H, s.W});
  f.tensor({s.lanes, s.C, s.H, s.W});
  f.tensor({s.N, s.K, s.P, s.Q});
  f.tensor({s.lanes, s.K, s.P, s.Q});
  f.tensor({s.K, s.C, s.R, s.S});
  return s;
}

template <>
LocalShape to_shape(const Place& place, py::handle object) {
  const LocalShape s{to_shape<ConvShape>(place, object)};
  Fields(place, object).tensor({s.P, s.Q, s.K, s.C, s.R, s.S});
  return s;
}

template <>
LinearShape to_shape(const Place& place, py::handle object) {
  const Fields f(place, object);
  return {f.extent("N"), f.extent("C"), f.extent("K"), f.extent("lanes")};
}

template <>
PoolShape to_shape(const Place& place, py::handle object) {
  const Fields f(place, object);
  const PoolShape s{f.extent("N"),       f.extent("C"),        f.extent("H"),    f.extent("W"),
                    f.extent("P"),       f.extent("Q"),        f.extent("size"), f.extent("stride"),
                    f.extent("pad_top"), f.extent("pad_left"), f.extent("lanes")};
  f.tensor({s.N, s.C, s.H, s.W});
  f.tensor({s.N, s.C, s.P, s.Q});
  return s;
}

template <>
LrnShape to_shape(const Place& place, py::handle object) {
  const Fields f(place, object);
  const LrnShape s{f.extent("N"),      f.extent("C"),     f.extent("H"),    f.extent("W"),
                   f.extent("groups"), f.extent("lanes"), f.extent("size"), f.real("alpha"),
                   f.real("beta"),     f.real("k")};
  f.tensor({s.N, s.C, s.H, s.W});
  f.tensor({s.N, s.groups, s.H, s.W});
  return s;
}

template <>
SpatialNormShape to_shape(const Place& place, py::handle object) {
  const Fields f(place, object);
  const SpatialNormShape s{f.extent("N"),   f.extent("C"),     f.extent("H"),
                           f.extent("W"),   f.extent("lanes"), f.extent("size"),
                           f.real("alpha"), f.real("beta"),    f.real("k")};
  f.tensor({s.N, s.C, s.H, s.W});
  return s;
}

template <>
BlurShape to_shape(const Place& place, py::handle object) {
  const Fields f(place, object);
  const BlurShape s{f.extent("N"),     f.extent("C"),    f.extent("H"), f.extent("W"),
                    f.extent("lanes"), f.extent("size"), f.real("std")};
  f.tensor({s.N, s.C, s.H, s.W});
  return s;
}

template <>
NailbedShape to_shape(const Place& place, py::handle object) {
  const Fields f(place, object);
  const NailbedShape s{f.extent("N"),    f.extent("C"),    f.extent("H"),      f.extent("W"),
                       f.extent("P"),    f.extent("Q"),    f.extent("stride"), f.extent("top"),
                       f.extent("left"), f.extent("lanes")};
  f.tensor({s.N, s.C, s.H, s.W});
  f.tensor({s.N, s.C, s.P, s.Q});
  return s;
}

template <>
DropoutShape to_shape(const Place& place, py::handle object) {
  const Fields f(place, object);
  const DropoutShape s{f.extent("N"),
                       f.extent("features"),
                       f.extent("lanes"),
                       f.extent("feature_offset"),
                       f.extent("features_total"),
                       f.real("p"),
                       f.u64("seed"),
                       f.u32("layer")};
  f.tensor({s.N, s.features_total});
  return s;
}

template <>
SoftmaxShape to_shape(const Place& place, py::handle object) {
  const Fields f(place, object);
  return {f.extent("N"), f.extent("valid"), f.extent("K"), f.extent("lanes")};
}

template <>
IngestShape to_shape(const Place& place, py::handle object) {
  const Fields f(place, object);
  const auto [red, green, blue] = f.channels("scale");
  const IngestShape s{f.extent("N"),    f.extent("valid"), f.extent("H"),      f.extent("W"),
                      f.extent("crop"), f.extent("lanes"), {red, green, blue}, f.extent("fold")};
  f.tensor({3, s.N, s.H, s.W});
  return s;
}

template <>
PackShape to_shape(const Place& place, py::handle object) {
  const Fields f(place, object);
  const PackShape s{
      f.extent("N"),
      f.extent("valid"),
      f.extent("C"),
      f.extent("H"),
      f.extent("W"),
      f.extent("lanes"),
      f.extent("fold"),
      f.extent("offset"),
      {f.extent("step_n"), f.extent("step_c"), f.extent("step_h"), f.extent("step_w")}};
  const auto up = [&](std::int64_t size) { return s.fold ? (size + s.fold - 1) / s.fold : size; };
  f.tensor({s.N, s.C, s.fold, s.fold, up(s.H), up(s.W)});
  const std::int64_t sizes[4] = {s.valid, s.C, s.H, s.W};
  for (int i = 0; i < 4; ++i) f.tensor({sizes[i], s.steps[i]});
  return s;
}

template <>
GatherShape to_shape(const Place& place, py::handle object) {
  const Fields f(place, object);
  const GatherShape s{f.extent("N"), f.extent("C"), f.extent("H"),
                      f.extent("W"), f.extent("K"), f.extent("lanes")};
  f.tensor({s.N, s.C, s.H, s.W});
  f.tensor({s.N, s.K, s.H, s.W});
  return s;
}

}  // namespace convnet::bindings
