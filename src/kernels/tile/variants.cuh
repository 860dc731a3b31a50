// Tables of the kernels of an op, the choice among them, and the grid that covers the output.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../check.hpp"
#include "../variants.hpp"
#include "gemm_tile.cuh"

namespace convnet {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Into how many parts of equal length, but for the last, `total` falls when about `wanted` are
// asked for.
constexpr int64_t even_parts(int64_t total, int64_t wanted) {
  return ceil_div(total, ceil_div(total, std::clamp(wanted, int64_t{1}, total)));
}

// Whether kernels for sm_90a are in this build; the build system says so where they are not.
#ifndef CONVNET_SM90A
#define CONVNET_SM90A 1
#endif

// One row of an op's table. Arguments is whatever its launcher takes.
template <class Shape, class Arguments>
struct Variant {
  const char* name;
  Precision precision;
  int architecture;   // the least one it runs on; 90 is the only one of its kernels (sm_90a)
  int rows, columns;  // of its tile
  const char* when;   // `takes` in words
  bool (*takes)(const Shape&);
  void (*run)(const Shape&, const Arguments&);
  bool (*can)(const Shape&) = nullptr;  // what it takes when forced, where that is more

  bool runs_here() const {
    if (architecture <= 80) return true;
    return architecture == 90 ? CONVNET_SM90A && convnet::architecture() == 90
                              : convnet::architecture() >= architecture;
  }
};

template <class Shape>
bool any_shape(const Shape&) {
  return true;
}

// A row whose kernels are instances of T, a tile: they can take any shape.
template <class T, class Shape, class Arguments>
constexpr Variant<Shape, Arguments> variant(const char* name,
                                            const char* when,
                                            bool (*takes)(const Shape&),
                                            void (*run)(const Shape&, const Arguments&)) {
  return {name, T::Arithmetic::kPrecision, 80, T::kM, T::kN, when, takes, run, any_shape};
}

// The first row of this precision that runs here and takes the shape, or the forced one. `generic`:
// of those that are not for one architecture.
template <class Shape, class Arguments, std::size_t kCount>
const Variant<Shape, Arguments>& choose(const char* op,
                                        const Variant<Shape, Arguments> (&table)[kCount],
                                        const Shape& shape,
                                        Precision precision,
                                        bool generic = false) {
  const std::string forced = forced_variants().of(op);
  for (const auto& row : table) {
    if (!forced.empty() && forced != row.name) continue;
    const auto takes = !forced.empty() && row.can ? row.can : row.takes;
    const bool fits = row.precision == precision && row.runs_here() && takes(shape) &&
                      !(generic && row.architecture == 90);
    require(fits || forced.empty(), op, ": the forced variant ", forced,
            " does not take this shape, precision or device; it is for ", row.when);
    if (fits) return row;
  }
  require(false, op, ": no variant ", forced, " for this shape and precision; see variants()");
  return table[0];
}

template <class Shape, class Arguments, std::size_t kCount>
std::vector<VariantRow> listed(const char* op, const Variant<Shape, Arguments> (&table)[kCount]) {
  std::vector<VariantRow> rows;
  for (const auto& row : table)
    rows.push_back({op, row.name, row.precision, row.architecture,
                    message(row.rows, "x", row.columns), row.when});
  return rows;
}

// Tiles of 128 (rows or columns) would be half empty: at most one and a half of them are needed.
constexpr bool half_filled_tiles(int64_t extent) {
  return extent <= 64 || (extent > 128 && extent <= 192);
}

// One block per tile: tiles along x and y, `layers` (groups, parts) along z.
inline Dim3 tile_grid(const char* op, int64_t x, int64_t y, int64_t layers) {
  require(x <= 2147483647 && y <= 65535 && layers <= 65535, op,
          ": the grid takes at most 2147483647 x 65535 x 65535 tiles, got ", x, " x ", y, " x ",
          layers, "; run the batch or the groups in parts");
  return Dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(layers));
}

}  // namespace convnet
