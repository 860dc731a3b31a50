// Conversions, and single operations rounded to float32, which the compiler must not contract into a
// fused multiply-add: for updates that are to give the same bits on every device.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "../../shapes.hpp"

namespace convnet {

__device__ __forceinline__ float to_float(bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}

// Rounds both to nearest, ties to even; `low` goes to the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ bf16 to_bf16(float x) {
  return bf16{static_cast<uint16_t>(pack_bf16(x, 0.0f))};
}

__device__ __forceinline__ float round_tf32(float x) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return __uint_as_float(rounded & 0xffffe000u);
}

__device__ __forceinline__ float rsqrt_normal(float x) {
  float root;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}

// Halves full of the uppermost bits of two bytes, 0 the lowest.
template <int kLow, int kHigh>
__device__ __forceinline__ uint32_t spread_signs(uint32_t bytes) {
  uint32_t halves;  // not __byte_perm, which cannot say that a bit is meant
  asm("prmt.b32 %0, %1, 0, %2;"
      : "=r"(halves)
      : "r"(bytes), "n"((8 + kLow) * 0x11 + (8 + kHigh) * 0x1100));
  return halves;
}

// Four of the eight bytes of two words, 0 the lowest of `low` and 4 that of `high`.
template <int kA, int kB, int kC, int kD>
__device__ __forceinline__ uint32_t pick_bytes(uint32_t low, uint32_t high) {
  return __byte_perm(low, high, kA + kB * 0x10 + kC * 0x100 + kD * 0x1000);
}

// Four numbers cut to 0 .. 255, the first one lowest.
__device__ __forceinline__ uint32_t cut_to_bytes(const int (&levels)[4]) {
  uint32_t bytes;
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, 0;" : "=r"(bytes) : "r"(levels[3]), "r"(levels[2]));
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %0;" : "+r"(bytes) : "r"(levels[1]), "r"(levels[0]));
  return bytes;
}

__device__ __forceinline__ float mul_rn(float a, float b) { return __fmul_rn(a, b); }

__device__ __forceinline__ float add_rn(float a, float b) { return __fadd_rn(a, b); }

__device__ __forceinline__ float sub_rn(float a, float b) { return __fsub_rn(a, b); }

__device__ __forceinline__ float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }

}  // namespace convnet
