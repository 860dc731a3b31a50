// How the functions of src/kernels reach Python: one bind() per function, arguments converted and checked by their C++ type.
//
//   pointer        an integer address; None or 0 is null, which only an optional() argument may be
//   Stream         an integer, 0 for the default stream
//   Precision      "fp32", "tf32" or "bf16"
//   ...Shape       an object with fields of the same names (convnet/kernels/shapes.py); std::optional of one: or None
//   anything else  as pybind11 does it
//
// The interpreter lock is released while the function runs. What was bound, signatures() tells.
#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../kernels/check.hpp"
#include "../kernels/control.hpp"
#include "../kernels/shapes.hpp"

namespace convnet::bindings {

namespace py = pybind11;

// The name of an argument in Python.
struct Name {
  Name(const char* text, bool may_be_null = false) : text(text), may_be_null(may_be_null) {}
  const char* text;
  bool may_be_null;
};

inline Name optional(const char* text) { return {text, true}; }

// Where a value comes from, for error texts: "conv_forward: x" or "conv_forward: shape.C".
struct Place {
  const char* function;
  const char* argument;
  const char* field = nullptr;
};

std::string describe(const Place& place);

// Each raises TypeError for a wrong Python type and ValueError for a value outside its range.
std::uint64_t to_unsigned(const Place& place, py::handle value, std::uint64_t largest);
float to_float(const Place& place, py::handle value);
std::uintptr_t to_address(const Place& place,
                          py::handle value,
                          bool may_be_null,
                          std::size_t alignment);

Precision to_precision(const Place& place, py::handle value);

template <class Shape>
Shape to_shape(const Place& place, py::handle object);

// An argument as signatures() tells of it: its name, what it is, whether it is an array that is written, and whether None
// may be passed.
using Row = std::tuple<const char*, const char*, bool, bool>;

// The alignment that addresses must have at most: 16 bytes, or less where a module says so.
std::size_t& largest_alignment();

// Every function bound so far.
std::map<std::string, std::vector<Row>>& signatures();

// What a Row says an argument is: of an array its dtype, or "activations" where the precision decides that.
template <class T>
inline constexpr const char* kKind = nullptr;
// clang-format off
template <> inline constexpr const char* kKind<void*> = "activations";
template <> inline constexpr const char* kKind<float*> = "float32";
template <> inline constexpr const char* kKind<std::int32_t*> = "int32";
template <> inline constexpr const char* kKind<std::uint8_t*> = "uint8";
template <> inline constexpr const char* kKind<bf16*> = "uint16";
template <> inline constexpr const char* kKind<Control*> = "uint32";
template <> inline constexpr const char* kKind<ConvShape> = "ConvShape";
template <> inline constexpr const char* kKind<LocalShape> = "LocalShape";
template <> inline constexpr const char* kKind<LinearShape> = "LinearShape";
template <> inline constexpr const char* kKind<PoolShape> = "PoolShape";
template <> inline constexpr const char* kKind<LrnShape> = "LrnShape";
template <> inline constexpr const char* kKind<SpatialNormShape> = "SpatialNormShape";
template <> inline constexpr const char* kKind<BlurShape> = "BlurShape";
template <> inline constexpr const char* kKind<NailbedShape> = "NailbedShape";
template <> inline constexpr const char* kKind<DropoutShape> = "DropoutShape";
template <> inline constexpr const char* kKind<SoftmaxShape> = "SoftmaxShape";
template <> inline constexpr const char* kKind<IngestShape> = "IngestShape";
template <> inline constexpr const char* kKind<PackShape> = "PackShape";
template <> inline constexpr const char* kKind<GatherShape> = "GatherShape";
template <> inline constexpr const char* kKind<std::int64_t> = "int";
template <> inline constexpr const char* kKind<std::uint64_t> = "int";
template <> inline constexpr const char* kKind<int> = "int";
template <> inline constexpr const char* kKind<float> = "float";
template <> inline constexpr const char* kKind<bool> = "bool";
template <> inline constexpr const char* kKind<std::string> = "str";
// clang-format on

// What Python passes for a parameter of C++ type T, and how it becomes one.
template <class T>
struct Argument {
  using Python = T;
  static Row row(const Name& name) { return {name.text, kKind<T>, false, false}; }
  static T convert(const char*, const Name&, const T& value) { return value; }
};

template <class T>
struct Argument<T*> {
  using Python = py::object;
  static Row row(const Name& name) {
    return {name.text, kKind<std::remove_const_t<T>*>, !std::is_const_v<T>, name.may_be_null};
  }
  static T* convert(const char* function, const Name& name, const py::object& value) {
    // Kernels read and write operands of floats, and those of either type, 16 bytes at a time.
    using Element = std::remove_const_t<T>;
    constexpr std::size_t alignment =
        std::is_same_v<Element, float> || std::is_void_v<Element> || std::is_same_v<Element, bf16>
            ? 16
            : alignof(std::conditional_t<std::is_void_v<T>, char, T>);
    return reinterpret_cast<T*>(to_address({function, name.text}, value, name.may_be_null,
                                           std::min(alignment, largest_alignment())));
  }
};

template <>
struct Argument<Stream> {
  using Python = py::object;
  static Row row(const Name& name) { return {name.text, "stream", false, false}; }
  static Stream convert(const char* function, const Name& name, const py::object& value) {
    return reinterpret_cast<Stream>(to_address({function, name.text}, value, true, 1));
  }
};

template <>
struct Argument<Precision> {
  using Python = py::object;
  static Row row(const Name& name) { return {name.text, "precision", false, false}; }
  static Precision convert(const char* function, const Name& name, const py::object& value) {
    return to_precision({function, name.text}, value);
  }
};

template <class Shape>
struct Argument<const Shape&> {
  using Python = py::object;
  static Row row(const Name& name) { return {name.text, kKind<Shape>, false, false}; }
  static Shape convert(const char* function, const Name& name, const py::object& value) {
    return to_shape<Shape>({function, name.text}, value);
  }
};

template <class Shape>
struct Argument<const std::optional<Shape>&> {
  using Python = py::object;
  static Row row(const Name& name) { return {name.text, kKind<Shape>, false, true}; }
  static std::optional<Shape> convert(const char* function,
                                      const Name& name,
                                      const py::object& value) {
    if (value.is_none()) return std::nullopt;
    return to_shape<Shape>({function, name.text}, value);
  }
};

template <class Result, class... Parameters, std::size_t... I>
void bind(py::module_& module,
          const char* function,
          Result (*implementation)(Parameters...),
          const Name (&names)[sizeof...(Parameters)],
          std::index_sequence<I...>) {
  const std::array<Name, sizeof...(Parameters)> kept{names[I]...};
  signatures()[function] = {Argument<Parameters>::row(names[I])...};
  module.def(
      function,
      [=](typename Argument<Parameters>::Python... values) -> Result {
        // Braces fix the order of conversion: the leftmost wrong argument is the one reported.
        const std::tuple<std::decay_t<Parameters>...> arguments{
            Argument<Parameters>::convert(function, kept[I], values)...};
        const py::gil_scoped_release unlocked;
        return std::apply(implementation, arguments);
      },
      py::arg(names[I].text)...);
}

// Binds `implementation` as module.function with its arguments named, in order.
template <class Result, class... Parameters>
void bind(py::module_& module,
          const char* function,
          Result (*implementation)(Parameters...),
          const Name (&names)[sizeof...(Parameters)]) {
  bind(module, function, implementation, names, std::index_sequence_for<Parameters...>{});
}

}  // namespace convnet::bindings
