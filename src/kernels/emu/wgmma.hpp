// Tensor cores of a warpgroup (sm_90a).
#pragma once
#include <cstddef>
#include <cstdint>
#include <source_location>

#include "../arch/tensor_map.hpp"

namespace convnet {
namespace emu {

using Site = std::source_location;

// `a_registers` is nullptr when `a` is a descriptor; of tf32 it never is.
void wgmma(bool tf32,
           int columns,
           bool transpose_a,
           bool transpose_b,
           float* sum,
           uint64_t a,
           const uint32_t* a_registers,
           uint64_t b,
           Site site);
void wgmma_wait(int left, Site site);
void check_at_rest(const void* values, std::size_t bytes, Site site);
void set_registers(int count, bool raise, Site site);

}  // namespace emu

uint64_t operand(const void* start,
                 int lbo,
                 int sbo,
                 Swizzle swizzle,
                 std::source_location site = std::source_location::current());
uint64_t advance(uint64_t descriptor,
                 int bytes,
                 std::source_location site = std::source_location::current());

template <int N, bool kTransposeA, bool kTransposeB>
void wgmma(float (&sum)[N / 2],
           uint64_t a,
           uint64_t b,
           std::source_location site = std::source_location::current()) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256);
  emu::wgmma(false, N, kTransposeA, kTransposeB, sum, a, nullptr, b, site);
}

// `a` is a warp's fragment of mma_bf16; its registers are in use as those of `sum` are.
template <int N, bool kTransposeB>
void wgmma(float (&sum)[N / 2],
           const uint32_t (&a)[4],
           uint64_t b,
           std::source_location site = std::source_location::current()) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256);
  emu::wgmma(false, N, false, kTransposeB, sum, 0, a, b, site);
}

template <int N>
void wgmma_tf32(float (&sum)[N / 2],
                const uint32_t (&a)[4],
                uint64_t b,
                std::source_location site = std::source_location::current()) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256);
  emu::wgmma(true, N, false, false, sum, 0, a, b, site);
}

void wgmma_fence(std::source_location site = std::source_location::current());
void wgmma_commit(std::source_location site = std::source_location::current());

template <int kLeft>
void wgmma_wait(std::source_location site = std::source_location::current()) {
  static_assert(kLeft >= 0 && kLeft <= 7);
  emu::wgmma_wait(kLeft, site);
}

template <class T, int kCount>
void hold(T (&values)[kCount], std::source_location site = std::source_location::current()) {
  emu::check_at_rest(values, sizeof values, site);
}

template <int kRegisters>
void raise_registers(std::source_location site = std::source_location::current()) {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  emu::set_registers(kRegisters, true, site);
}

template <int kRegisters>
void lower_registers(std::source_location site = std::source_location::current()) {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  emu::set_registers(kRegisters, false, site);
}

bool elect_one(std::source_location site = std::source_location::current());

}  // namespace convnet
