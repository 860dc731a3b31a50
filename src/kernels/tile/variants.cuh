// Tables of kernels that differ in their tile alone, the choice among them, and the grid that
// covers the output.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../check.hpp"
#include "gemm_tile.cuh"

namespace convnet {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Into how many parts of equal length, but for the last, `total` falls when about `wanted` are asked for.
constexpr int64_t even_parts(int64_t total, int64_t wanted) {
  return ceil_div(total, ceil_div(total, std::clamp(wanted, int64_t{1}, total)));
}

template <class Kernel>
struct Variant {
  int rows, columns, threads;
  std::size_t shared_bytes;
  Kernel kernel;
};

template <class T, class Kernel>
constexpr Variant<Kernel> variant(Kernel kernel) {
  return {T::kM, T::kN, T::kThreads, sizeof(Stages<T>), kernel};
}

// The first variant, unless a later one has at least a fifth fewer rows to compute: small tiles
// read more per product, so tables start with the largest.
template <class Kernel, std::size_t kCount>
const Variant<Kernel>& best_rows(const Variant<Kernel> (&table)[kCount], int64_t rows) {
  const Variant<Kernel>* best = &table[0];
  for (const Variant<Kernel>& candidate : table)
    if (5 * round_up(rows, candidate.rows) <= 4 * round_up(rows, best->rows)) best = &candidate;
  return *best;
}

// One block per tile: columns along x, rows along y, `layers` (groups, parts) along z.
template <class Kernel>
Dim3 output_grid(
    const char* op, const Variant<Kernel>& tile, int64_t rows, int64_t columns, int64_t layers) {
  const int64_t x = ceil_div(columns, tile.columns), y = ceil_div(rows, tile.rows);
  require(x <= 2147483647 && y <= 65535 && layers <= 65535, op,
          ": the grid takes at most 2147483647 x 65535 x 65535 tiles, got ", x, " x ", y, " x ",
          layers, " for ", columns, " columns and ", rows,
          " rows; run the batch or the groups in parts");
  return Dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(layers));
}

}  // namespace convnet
