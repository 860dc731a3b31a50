// Tensor cores of a warpgroup (sm_90a).
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "../tensor_map.hpp"
#include "barrier.cuh"

namespace convnet {

// Bits 0-13 where it starts, 16-29 LBO, 32-45 SBO, all in units of 16 bytes; 62-63 the swizzle, counted backwards.
__device__ __forceinline__ uint64_t operand(const void* start, int lbo, int sbo, Swizzle swizzle) {
  const auto field = [](int bytes) { return static_cast<uint64_t>((bytes & 0x3ffff) >> 4); };
  const int code = (4 - static_cast<int>(swizzle)) % 4;
  return field(static_cast<int>(shared_address(start))) | field(lbo) << 16 | field(sbo) << 32 |
         static_cast<uint64_t>(code) << 62;
}

__device__ __forceinline__ uint64_t advance(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes >> 4);
}

// The instruction names every register of `sum`: for each N the list of their numbers (R), the list of the registers (S),
// and the numbers of the operands behind them. `scale` is true: the old sum is added.
// clang-format off
#define CONVNET_REGISTERS(i) "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3])
#define CONVNET_R8 "%0, %1, %2, %3"
#define CONVNET_R16 CONVNET_R8 ", %4, %5, %6, %7"
#define CONVNET_R24 CONVNET_R16 ", %8, %9, %10, %11"
#define CONVNET_R32 CONVNET_R24 ", %12, %13, %14, %15"
#define CONVNET_R40 CONVNET_R32 ", %16, %17, %18, %19"
#define CONVNET_R48 CONVNET_R40 ", %20, %21, %22, %23"
#define CONVNET_R56 CONVNET_R48 ", %24, %25, %26, %27"
#define CONVNET_R64 CONVNET_R56 ", %28, %29, %30, %31"
#define CONVNET_R72 CONVNET_R64 ", %32, %33, %34, %35"
#define CONVNET_R80 CONVNET_R72 ", %36, %37, %38, %39"
#define CONVNET_R88 CONVNET_R80 ", %40, %41, %42, %43"
#define CONVNET_R96 CONVNET_R88 ", %44, %45, %46, %47"
#define CONVNET_R104 CONVNET_R96 ", %48, %49, %50, %51"
#define CONVNET_R112 CONVNET_R104 ", %52, %53, %54, %55"
#define CONVNET_R120 CONVNET_R112 ", %56, %57, %58, %59"
#define CONVNET_R128 CONVNET_R120 ", %60, %61, %62, %63"
#define CONVNET_R136 CONVNET_R128 ", %64, %65, %66, %67"
#define CONVNET_R144 CONVNET_R136 ", %68, %69, %70, %71"
#define CONVNET_R152 CONVNET_R144 ", %72, %73, %74, %75"
#define CONVNET_R160 CONVNET_R152 ", %76, %77, %78, %79"
#define CONVNET_R168 CONVNET_R160 ", %80, %81, %82, %83"
#define CONVNET_R176 CONVNET_R168 ", %84, %85, %86, %87"
#define CONVNET_R184 CONVNET_R176 ", %88, %89, %90, %91"
#define CONVNET_R192 CONVNET_R184 ", %92, %93, %94, %95"
#define CONVNET_R200 CONVNET_R192 ", %96, %97, %98, %99"
#define CONVNET_R208 CONVNET_R200 ", %100, %101, %102, %103"
#define CONVNET_R216 CONVNET_R208 ", %104, %105, %106, %107"
#define CONVNET_R224 CONVNET_R216 ", %108, %109, %110, %111"
#define CONVNET_R232 CONVNET_R224 ", %112, %113, %114, %115"
#define CONVNET_R240 CONVNET_R232 ", %116, %117, %118, %119"
#define CONVNET_R248 CONVNET_R240 ", %120, %121, %122, %123"
#define CONVNET_R256 CONVNET_R248 ", %124, %125, %126, %127"
#define CONVNET_S8 CONVNET_REGISTERS(0)
#define CONVNET_S16 CONVNET_S8, CONVNET_REGISTERS(4)
#define CONVNET_S24 CONVNET_S16, CONVNET_REGISTERS(8)
#define CONVNET_S32 CONVNET_S24, CONVNET_REGISTERS(12)
#define CONVNET_S40 CONVNET_S32, CONVNET_REGISTERS(16)
#define CONVNET_S48 CONVNET_S40, CONVNET_REGISTERS(20)
#define CONVNET_S56 CONVNET_S48, CONVNET_REGISTERS(24)
#define CONVNET_S64 CONVNET_S56, CONVNET_REGISTERS(28)
#define CONVNET_S72 CONVNET_S64, CONVNET_REGISTERS(32)
#define CONVNET_S80 CONVNET_S72, CONVNET_REGISTERS(36)
#define CONVNET_S88 CONVNET_S80, CONVNET_REGISTERS(40)
#define CONVNET_S96 CONVNET_S88, CONVNET_REGISTERS(44)
#define CONVNET_S104 CONVNET_S96, CONVNET_REGISTERS(48)
#define CONVNET_S112 CONVNET_S104, CONVNET_REGISTERS(52)
#define CONVNET_S120 CONVNET_S112, CONVNET_REGISTERS(56)
#define CONVNET_S128 CONVNET_S120, CONVNET_REGISTERS(60)
#define CONVNET_S136 CONVNET_S128, CONVNET_REGISTERS(64)
#define CONVNET_S144 CONVNET_S136, CONVNET_REGISTERS(68)
#define CONVNET_S152 CONVNET_S144, CONVNET_REGISTERS(72)
#define CONVNET_S160 CONVNET_S152, CONVNET_REGISTERS(76)
#define CONVNET_S168 CONVNET_S160, CONVNET_REGISTERS(80)
#define CONVNET_S176 CONVNET_S168, CONVNET_REGISTERS(84)
#define CONVNET_S184 CONVNET_S176, CONVNET_REGISTERS(88)
#define CONVNET_S192 CONVNET_S184, CONVNET_REGISTERS(92)
#define CONVNET_S200 CONVNET_S192, CONVNET_REGISTERS(96)
#define CONVNET_S208 CONVNET_S200, CONVNET_REGISTERS(100)
#define CONVNET_S216 CONVNET_S208, CONVNET_REGISTERS(104)
#define CONVNET_S224 CONVNET_S216, CONVNET_REGISTERS(108)
#define CONVNET_S232 CONVNET_S224, CONVNET_REGISTERS(112)
#define CONVNET_S240 CONVNET_S232, CONVNET_REGISTERS(116)
#define CONVNET_S248 CONVNET_S240, CONVNET_REGISTERS(120)
#define CONVNET_S256 CONVNET_S248, CONVNET_REGISTERS(124)

// X(N, numbers of up to six operands)
#define CONVNET_EACH_N(X) \
  X(8, 4, 5, 6, 7, 8, 9) X(16, 8, 9, 10, 11, 12, 13) \
  X(24, 12, 13, 14, 15, 16, 17) X(32, 16, 17, 18, 19, 20, 21) \
  X(40, 20, 21, 22, 23, 24, 25) X(48, 24, 25, 26, 27, 28, 29) \
  X(56, 28, 29, 30, 31, 32, 33) X(64, 32, 33, 34, 35, 36, 37) \
  X(72, 36, 37, 38, 39, 40, 41) X(80, 40, 41, 42, 43, 44, 45) \
  X(88, 44, 45, 46, 47, 48, 49) X(96, 48, 49, 50, 51, 52, 53) \
  X(104, 52, 53, 54, 55, 56, 57) X(112, 56, 57, 58, 59, 60, 61) \
  X(120, 60, 61, 62, 63, 64, 65) X(128, 64, 65, 66, 67, 68, 69) \
  X(136, 68, 69, 70, 71, 72, 73) X(144, 72, 73, 74, 75, 76, 77) \
  X(152, 76, 77, 78, 79, 80, 81) X(160, 80, 81, 82, 83, 84, 85) \
  X(168, 84, 85, 86, 87, 88, 89) X(176, 88, 89, 90, 91, 92, 93) \
  X(184, 92, 93, 94, 95, 96, 97) X(192, 96, 97, 98, 99, 100, 101) \
  X(200, 100, 101, 102, 103, 104, 105) X(208, 104, 105, 106, 107, 108, 109) \
  X(216, 108, 109, 110, 111, 112, 113) X(224, 112, 113, 114, 115, 116, 117) \
  X(232, 116, 117, 118, 119, 120, 121) X(240, 120, 121, 122, 123, 124, 125) \
  X(248, 124, 125, 126, 127, 128, 129) X(256, 128, 129, 130, 131, 132, 133)

// Both operands in shared memory.
#define CONVNET_WGMMA(n, o0, o1, o2, o3, o4, o5)                                       \
  if constexpr (N == n)                                                                \
    asm volatile("{\n.reg .pred scale;\nsetp.ne.b32 scale, 1, 0;\n"                    \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {"          \
                 CONVNET_R##n "}, %" #o0 ", %" #o1 ", scale, 1, 1, %" #o2 ", %" #o3 ";\n}" \
                 : CONVNET_S##n                                                        \
                 : "l"(a), "l"(b), "n"(kTransposeA ? 1 : 0), "n"(kTransposeB ? 1 : 0));

// The first operand in registers.
#define CONVNET_WGMMA_REGISTERS(n, o0, o1, o2, o3, o4, o5)                             \
  if constexpr (N == n)                                                                \
    asm volatile("{\n.reg .pred scale;\nsetp.ne.b32 scale, 1, 0;\n"                    \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {"          \
                 CONVNET_R##n "}, {%" #o0 ", %" #o1 ", %" #o2 ", %" #o3 "}, %" #o4     \
                 ", scale, 1, 1, %" #o5 ";\n}"                                         \
                 : CONVNET_S##n                                                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                 \
                   "n"(kTransposeB ? 1 : 0));

#define CONVNET_WGMMA_TF32(n, o0, o1, o2, o3, o4, o5)                                  \
  if constexpr (N == n)                                                                \
    asm volatile("{\n.reg .pred scale;\nsetp.ne.b32 scale, 1, 0;\n"                    \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k8.f32.tf32.tf32 {"           \
                 CONVNET_R##n "}, {%" #o0 ", %" #o1 ", %" #o2 ", %" #o3 "}, %" #o4     \
                 ", scale, 1, 1;\n}"                                                   \
                 : CONVNET_S##n                                                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
// clang-format on

template <int N, bool kTransposeA, bool kTransposeB>
__device__ __forceinline__ void wgmma(float (&sum)[N / 2], uint64_t a, uint64_t b) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256);
  CONVNET_SM90(CONVNET_EACH_N(CONVNET_WGMMA));
}

// `a` is a warp's fragment of mma_bf16; its registers are in use as those of `sum` are.
template <int N, bool kTransposeB>
__device__ __forceinline__ void wgmma(float (&sum)[N / 2], const uint32_t (&a)[4], uint64_t b) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256);
  CONVNET_SM90(CONVNET_EACH_N(CONVNET_WGMMA_REGISTERS));
}

// The same over eight tf32 terms, `a` a fragment of mma_tf32.
template <int N>
__device__ __forceinline__ void wgmma_tf32(float (&sum)[N / 2],
                                           const uint32_t (&a)[4],
                                           uint64_t b) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256);
  CONVNET_SM90(CONVNET_EACH_N(CONVNET_WGMMA_TF32));
}

__device__ __forceinline__ void store4_operand(float* place, float4 value) {
  *reinterpret_cast<float4*>(place) = value;
}

__device__ __forceinline__ void wgmma_fence() {
  CONVNET_SM90(asm volatile("wgmma.fence.sync.aligned;" :: : "memory"));
}

__device__ __forceinline__ void wgmma_commit() {
  CONVNET_SM90(asm volatile("wgmma.commit_group.sync.aligned;" :: : "memory"));
}

template <int kLeft>
__device__ __forceinline__ void wgmma_wait() {
  static_assert(kLeft >= 0 && kLeft <= 7);
  CONVNET_SM90(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory"));
}

template <int kCount>
__device__ __forceinline__ void hold(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

template <int kCount>
__device__ __forceinline__ void hold(uint32_t (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(values[i])::"memory");
}

template <int kRegisters>
__device__ __forceinline__ void raise_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  CONVNET_SM90(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters)));
}

template <int kRegisters>
__device__ __forceinline__ void lower_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  CONVNET_SM90(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters)));
}

__device__ __forceinline__ bool elect_one() {
  uint32_t elected = 0;
  CONVNET_SM90(
      asm volatile("{\n"
                   ".reg .pred p;\n"
                   "elect.sync _|p, 0xffffffff;\n"
                   "selp.u32 %0, 1, 0, p;\n"
                   "}" : "=r"(elected)));
  return elected != 0;
}

}  // namespace convnet
