// The machine that a kernel source is compiled for: a GPU (nvcc) or the emulator (a C++ compiler), under the same names.
// Kernel sources include this header and use nothing of CUDA beyond __global__, __device__, __forceinline__,
// __launch_bounds__, __restrict__, threadIdx, blockIdx, blockDim, gridDim, __syncthreads, __syncwarp, float4 and what is
// declared below.
//
//   launch(kernel, Dim3 grid, Dim3 block, shared_bytes, stream, args...)   host: starts a kernel, throws when it cannot
//   shared_storage<T>()      the block's dynamic shared memory seen as a T; the only way to shared memory
//   load4 / store4           16 bytes between memory and four floats; the address must be 16-byte aligned
//   load4_bytes / store4_bytes   four bytes, the first one lowest in the word; the address must be 4-byte aligned
//   mul_rn / add_rn / sub_rn     one operation rounded to float32, never contracted into a fused multiply-add
//   rsqrtf(x)                    1 / sqrt(x), on a GPU within 2 units in the last place
//   warp_sum / warp_max      reduction over the 32 lanes of a warp (float, int), same in every lane; all 32 lanes must call it
//   warp_shuffle_xor         the value (float, int) of lane (lane ^ mask); all 32 lanes must call it
#pragma once
#ifdef CONVNET_EMU
#include "../emu/emu.hpp"
#else
#include "gpu/launch.cuh"
#include "gpu/math.cuh"
#include "gpu/memory.cuh"
#include "gpu/warp.cuh"
#endif
