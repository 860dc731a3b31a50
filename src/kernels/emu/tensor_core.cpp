#include "tensor_core.hpp"

#include <bit>
#include <cmath>
#include <cstdint>

#include "fiber.hpp"

// However the rest of the emulator is compiled: kernels spend their time here. Products are exact, so that it makes no
// difference whether the compiler fuses them with the additions.
#pragma GCC optimize("O3,fp-contract=fast")

// The fastest version of a function is chosen when the program starts. Not with AddressSanitizer, which is not ready then.
#if defined(__x86_64__) && defined(__GLIBC__) && !CONVNET_EMU_ASAN
#define CONVNET_EMU_VERSIONS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CONVNET_EMU_VERSIONS
#endif

namespace convnet::emu {
namespace {

// Rounded to nearest and, where that went away from zero, one step back; infinity from 2^128 on. Compares bits as integers
// and has no branches, so that it vectorises.
[[gnu::always_inline]] inline float cut(double exact) {
  constexpr int64_t kLimit = std::bit_cast<int64_t>(0x1p128);
  constexpr int64_t kInfinity = std::bit_cast<int64_t>(HUGE_VAL);
  const float nearest = static_cast<float>(exact);
  const int64_t wanted = std::bit_cast<int64_t>(exact) & INT64_MAX;
  const int64_t reached = std::bit_cast<int64_t>(static_cast<double>(nearest)) & INT64_MAX;
  const int64_t too_far =
      static_cast<int64_t>(reached > wanted) & static_cast<int64_t>(wanted < kLimit);
  const int32_t bits = std::bit_cast<int32_t>(nearest) - static_cast<int32_t>(too_far);
  const int32_t nan = -static_cast<int32_t>(wanted > kInfinity);
  return std::bit_cast<float>((bits | nan) & ~(nan & INT32_MIN));
}

// Written for compilers that vectorise over n and unroll over k.
template <int kTerms>
[[gnu::always_inline]] inline void multiply_add_row(int columns,
                                                    const double* __restrict a,
                                                    const double* __restrict b,
                                                    float* __restrict sum) {
  for (int n = 0; n < columns; ++n) {
    double total = static_cast<double>(sum[n]);
#pragma GCC unroll 16
    for (int k = 0; k < kTerms; ++k) total += a[k] * b[k * columns + n];
    sum[n] = cut(total + 0.0);  // no negative zero
  }
}

}  // namespace

CONVNET_EMU_VERSIONS
void multiply_add(int rows, int columns, int terms, const double* a, const double* b, float* sum) {
  for (int m = 0; m < rows; ++m)
    if (terms == 16)
      multiply_add_row<16>(columns, a + m * 16, b, sum + m * columns);
    else
      multiply_add_row<8>(columns, a + m * 8, b, sum + m * columns);
}

}  // namespace convnet::emu
