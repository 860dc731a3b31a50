// Tensor cores of a warp, and the matrix loads and stores that feed them. The lanes meet once per call.
//
// A fragment is a warp's matrix spread over the registers of its lanes. With g = lane / 4 and q = lane % 4, and two bf16 in
// a register, the lower half first:
//
//   a of mma_bf16, 16 x 16     register i holds rows g + 8 (i % 2), terms 2 q + 8 (i / 2) and the next
//   b of mma_bf16, 16 x 8      register i holds terms 2 q + 8 i and the next, column g
//   a of mma_tf32, 16 x 8      register i holds row g + 8 (i % 2), term q + 4 (i / 2)
//   b of mma_tf32, 8 x 8       register i holds term q + 4 i, column g
//   sum, 16 x 8                register i holds row g + 8 (i / 2), column 2 q + i % 2
//   one of 8 x 8 16-bit values that load_matrices gives     row g, columns 2 q and the next; transposed: column and rows
#pragma once
#include <cstdint>
#include <cstring>
#include <source_location>

#include "../check.hpp"
#include "block.hpp"
#include "copy_async.hpp"
#include "launch.hpp"
#include "tma.hpp"
#include "warp.hpp"

namespace convnet {
namespace emu {

// What one lane has: sum[rows / 16][columns / 8][4], a[rows / 16][4], b[columns / 8][2].
struct Fragments {
  float* sum;
  const uint32_t* a;
  const uint32_t* b;
};

// Of all lanes, for M x N products.
void multiply_bf16(const Fragments* const* lanes, int M, int N);
void multiply_tf32(const Fragments* const* lanes, int M, int N);

// What one lane has: `count` rows, each of a matrix of its own, and the registers for `count` times four matrices.
struct MatrixRows {
  uint32_t (*r)[4];
  const uint16_t (*row)[8];
};

void distribute(const MatrixRows* const* lanes, int count, bool transposed);

// Four registers of a lane, or a row of a matrix.
struct alignas(16) Quad {
  uint32_t word[4];
};

// Of all lanes: registers to rows.
void collect_transposed(const Quad* registers, Quad* rows);

void check_rounded(const uint32_t* operands, int count, Site site);
void check_row(const char* operation, const void* row, Site site);
// The 16 bytes of a row, in shared memory.
void read_row(const void* row, void* values, Site site);
void write_row(void* row, const void* values, Site site);

template <int kCount>
void load_matrices(uint32_t (&r)[kCount][4],
                   const void* const (&rows)[kCount],
                   bool transposed,
                   const char* operation,
                   Site site) {
  // A row is read as early as it may be: when its lane calls, not when all have come.
  alignas(16) uint16_t values[kCount][8];
  for (int i = 0; i < kCount; ++i) {
    check_row(operation, rows[i], site);
    read_row(rows[i], values[i], site);
  }
  const MatrixRows mine{r, values};
  meet(&mine, operation, site, [&](const MatrixRows* const* lanes, const MatrixRows**) {
    distribute(lanes, kCount, transposed);
  });
}

}  // namespace emu

template <int M, int N>
void mma_bf16(float (&sum)[M][N][4],
              const uint32_t (&a)[M][4],
              const uint32_t (&b)[N][2],
              std::source_location site = std::source_location::current()) {
  using emu::Fragments;
  const Fragments mine{&sum[0][0][0], &a[0][0], &b[0][0]};
  emu::meet(&mine, "mma_bf16", site, [](const Fragments* const* lanes, const Fragments**) {
    emu::multiply_bf16(lanes, M, N);
  });
}

template <int M, int N>
void mma_tf32(float (&sum)[M][N][4],
              const uint32_t (&a)[M][4],
              const uint32_t (&b)[N][2],
              std::source_location site = std::source_location::current()) {
  using emu::Fragments;
  emu::check_rounded(&a[0][0], 4 * M, site);
  emu::check_rounded(&b[0][0], 2 * N, site);
  const Fragments mine{&sum[0][0][0], &a[0][0], &b[0][0]};
  emu::meet(&mine, "mma_tf32", site, [](const Fragments* const* lanes, const Fragments**) {
    emu::multiply_tf32(lanes, M, N);
  });
}

template <int kCount>
void load_matrices(uint32_t (&r)[kCount][4],
                   const void* const (&rows)[kCount],
                   std::source_location site = std::source_location::current()) {
  emu::load_matrices(r, rows, false, "load_matrices", site);
}

template <int kCount>
void load_matrices_transposed(uint32_t (&r)[kCount][4],
                              const void* const (&rows)[kCount],
                              std::source_location site = std::source_location::current()) {
  emu::load_matrices(r, rows, true, "load_matrices_transposed", site);
}

inline void store_matrices_transposed(void* row,
                                      const uint32_t (&r)[4],
                                      std::source_location site = std::source_location::current()) {
  constexpr const char* kName = "store_matrices_transposed";
  if (architecture() < 90)
    emu::fail(
        message(kName, " in ", emu::describe(site), " needs sm_90, this is sm_", architecture()));
  emu::check_row(kName, row, site);
  const emu::Quad mine{{r[0], r[1], r[2], r[3]}};
  const emu::Quad values = emu::meet(mine, kName, site, emu::collect_transposed);
  // Each lane writes its row when it goes on: others see it only behind a __syncwarp.
  emu::write_row(row, &values, site);
  emu::note_shared_write(row, sizeof values, site);
}

}  // namespace convnet
