#include "mma.hpp"

#include <bit>
#include <cstring>
#include <vector>

#include "glass.hpp"
#include "tensor_core.hpp"

namespace convnet::emu {
namespace {

double low_bf16(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
double high_bf16(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

// The matrices of all lanes, kept from call to call.
struct Matrices {
  std::vector<double> a, b;
  std::vector<float> sum;
};
thread_local Matrices matrices;

// Gathers, multiplies, hands out. place_a(at, q, registers) writes what one lane has of 16 rows of `a`, `at` the first
// term of its row g; place_b(at, columns, q, registers) the same of 8 columns of `b`, `at` the first term of its column g.
template <int kTerms, class PlaceA, class PlaceB>
void multiply(const Fragments* const* lanes, int M, int N, PlaceA place_a, PlaceB place_b) {
  const int rows = 16 * M, columns = 8 * N;
  matrices.a.resize(static_cast<std::size_t>(rows * kTerms));
  matrices.b.resize(static_cast<std::size_t>(kTerms * columns));
  matrices.sum.resize(static_cast<std::size_t>(rows * columns));
  double* const a = matrices.a.data();
  double* const b = matrices.b.data();
  float* const sum = matrices.sum.data();
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const int g = lane / 4, q = lane % 4;
    const Fragments& mine = *lanes[lane];
    for (int m = 0; m < M; ++m) place_a(a + (16 * m + g) * kTerms, q, mine.a + 4 * m);
    for (int n = 0; n < N; ++n) place_b(b + 8 * n + g, columns, q, mine.b + 2 * n);
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n)
        for (int i = 0; i < 4; ++i)
          sum[(16 * m + g + 8 * (i / 2)) * columns + 8 * n + 2 * q + i % 2] =
              mine.sum[(m * N + n) * 4 + i];
  }
  multiply_add(rows, columns, kTerms, a, b, sum);
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const int g = lane / 4, q = lane % 4;
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n)
        for (int i = 0; i < 4; ++i)
          lanes[lane]->sum[(m * N + n) * 4 + i] =
              sum[(16 * m + g + 8 * (i / 2)) * columns + 8 * n + 2 * q + i % 2];
  }
}

}  // namespace

void multiply_bf16(const Fragments* const* lanes, int M, int N) {
  constexpr int kTerms = 16;
  multiply<kTerms>(
      lanes, M, N,
      [](double* row, int q, const uint32_t* r) {
        for (int i = 0; i < 4; ++i) {
          double* const at = row + 8 * (i % 2) * kTerms + 2 * q + 8 * (i / 2);
          at[0] = low_bf16(r[i]);
          at[1] = high_bf16(r[i]);
        }
      },
      [](double* column, int columns, int q, const uint32_t* r) {
        for (int i = 0; i < 2; ++i) {
          double* const at = column + (2 * q + 8 * i) * columns;
          at[0] = low_bf16(r[i]);
          at[columns] = high_bf16(r[i]);
        }
      });
}

void multiply_tf32(const Fragments* const* lanes, int M, int N) {
  constexpr int kTerms = 8;
  multiply<kTerms>(
      lanes, M, N,
      [](double* row, int q, const uint32_t* r) {
        for (int i = 0; i < 4; ++i)
          row[8 * (i % 2) * kTerms + q + 4 * (i / 2)] = std::bit_cast<float>(r[i]);
      },
      [](double* column, int columns, int q, const uint32_t* r) {
        for (int i = 0; i < 2; ++i) column[(q + 4 * i) * columns] = std::bit_cast<float>(r[i]);
      });
}

void distribute(const MatrixRows* const* lanes, int count, bool transposed) {
  for (int i = 0; i < count; ++i)
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto value = [&](int row, int column) -> uint32_t {
        return lanes[8 * matrix + row]->row[i][column];
      };
      for (int lane = 0; lane < kWarpLanes; ++lane) {
        const int g = lane / 4, q = lane % 4;
        lanes[lane]->r[i][matrix] = transposed ? value(2 * q, g) | value(2 * q + 1, g) << 16
                                               : value(g, 2 * q) | value(g, 2 * q + 1) << 16;
      }
    }
}

void collect_transposed(const Quad* registers, Quad* rows) {
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const int matrix = lane / 8, row = lane % 8;
    // Column g of this row is in lane 4 g + row / 2, in the lower half if the row is even.
    const auto value = [&](int g) {
      return registers[4 * g + row / 2].word[matrix] >> 16 * (row % 2) & 0xffffu;
    };
    for (int i = 0; i < 4; ++i) rows[lane].word[i] = value(2 * i) | value(2 * i + 1) << 16;
  }
}

void check_rounded(const uint32_t* operands, int count, Site site) {
  uint32_t all = 0;
  for (int i = 0; i < count; ++i) all |= operands[i];
  if ((all & 0x1fffu) != 0)
    fail(message("mma_tf32 in ", describe(site),
                 ": an operand was not rounded with round_tf32, hardware would truncate it"));
}

void check_row(const char* operation, const void* row, Site site) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail_unaligned(row, 16, site);
  if (!here->block->shared.holds(row, 16)) fail_not_shared(operation, row, site);
}

void read_row(const void* row, void* values, Site site) {
  if (watching) watch_access("ldmatrix", row, 16, false, site);
  std::memcpy(values, row, 16);
}

void write_row(void* row, const void* values, Site site) {
  if (watching) watch_access("stmatrix", row, 16, true, site);
  std::memcpy(row, values, 16);
}

}  // namespace convnet::emu
