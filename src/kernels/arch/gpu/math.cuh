// Single operations rounded to float32, which the compiler must not contract into a fused
// multiply-add: for updates that are to give the same bits on every device.
#pragma once

namespace convnet {

__device__ __forceinline__ float mul_rn(float a, float b) { return __fmul_rn(a, b); }

__device__ __forceinline__ float add_rn(float a, float b) { return __fadd_rn(a, b); }

__device__ __forceinline__ float sub_rn(float a, float b) { return __fsub_rn(a, b); }

}  // namespace convnet
