// The machine that a kernel source is compiled for: a GPU (nvcc) or the emulator (a C++ compiler), under the same names.
// Kernel sources include this header and use nothing of CUDA beyond __global__, __device__, __forceinline__,
// __launch_bounds__, __restrict__, threadIdx, blockIdx, blockDim, gridDim, __syncthreads, __syncwarp, float2, float4 and
// what is declared below.
//
//   launch(kernel, Grid grid, Dim3 block, shared_bytes, stream, args...)   host: starts a kernel, throws when it cannot. A
//                            Dim3 is a Grid; Grid(Dim3, n) is one whose blocks form clusters of n neighbours along x
//   begin_kernel()           what every thread of every kernel does before it reads or writes global memory: until then the
//                            kernels before it on its stream may still be running
//   shared_storage<T>()      the block's dynamic shared memory seen as a T; the only way to shared memory
//   load4 / store4           four neighbouring values, float (16-byte aligned) or bf16 (8-byte aligned), as four floats
//   load2 / store2           two neighbouring floats, 8-byte aligned
//   prefetch_l2(address)         starts to bring the 128 bytes that hold it into the second level of cache
//   load_packed(address)     four neighbouring values as they lie in memory, for whoever waits to use them: float4 or bf16x4
//   unpack4(packed)          as four floats
//   pack4(float4, packed), store_packed(address, packed)     the way back, rounded as by store4
//   keep_where_equal(packed, bytes, wanted)      the values whose byte, of four, is the wanted one; -0 and the others become 0; bytes
//                                                must be below 128
//   keep_where_positive(packed, x)               the values whose x > 0; the others become 0
//   load4_bytes / store4_bytes   four bytes, the first one lowest in the word; the address must be 4-byte aligned
//   mul_rn / add_rn / sub_rn     one operation rounded to float32, never contracted into a fused multiply-add
//   fma_rn(a, b, c)          a * b + c, rounded once
//   rsqrtf(x)                    1 / sqrt(x), on a GPU within 2 units in the last place
//   rsqrt_normal(x)          the same for a normal number x, without the instructions that serve the others
//   tanhf(x)                     within 2 units in the last place of the rounded result
//   warp_sum / warp_max      reduction over the 32 lanes of a warp (float, int), same in every lane; all 32 lanes must call it
//   warp_shuffle_xor         the value (float, int) of lane (lane ^ mask); all 32 lanes must call it
//   warp_uniform(int)        the value of lane 0; all 32 lanes must call it
//
// Numbers
//   to_float(bf16), to_bf16(float)           rounded to nearest, ties to even; NaN becomes 0x7fff
//   pack_bf16(low, high)                     two of them in one register
//   spread_signs<low, high>(bytes)           halves full of the uppermost bits of these two of four bytes, 0 the lowest
//   pick_bytes<a, b, c, d>(low, high)        four of eight bytes as a word: 0 is the lowest of the one, 4 that of the other
//   cut_to_bytes(int[4])                     each cut to 0..255, the first one lowest in the word
//   round_tf32(x)                            nearest tf32, ties away from zero; the low 13 bits are zero (as bits)
//
// Tensor cores of a warp (mma.sync; every lane of the warp must call). Fragments as in the PTX manual; `sum` is added to.
//   mma_bf16(sum[M][N][4], a[M][4], b[N][2])     M x N products of 16 x 8 sums over 16 terms
//   mma_tf32(sum[M][N][4], a[M][4], b[N][2])     the same over 8 terms; operands must have been rounded
//   load_matrices<Count>(r[Count][4], rows[Count])         Count times ldmatrix.x4; rows[i] is this lane's row address
//   load_matrices_transposed<Count>(r, rows)               the same with .trans
//   store_matrices_transposed(row, r[4])                   stmatrix.x4.trans (sm_90)
//
// Copies from global to shared memory that run on their own (cp.async, sm_80)
//   copy_async<bytes>(target, source, exists)    4, 8 or 16 bytes, both addresses aligned to them; zeros where !exists
//                                                (the source is then not read and may be any such address)
//   copy_async_commit()                          closes this thread's group of copies
//   copy_async_wait<left>()                      until at most `left` of this thread's groups are under way; others see
//                                                the copies behind the next barrier
//
// Tensor copies (TMA, sm_90). A TensorMap is passed by value as `const __grid_constant__ TensorMap`.
//   TensorMap tensor_map(what, Element, address, sizes[5], byte_strides[4], box[5], Swizzle)      host; dimension 0 is
//                                                                the contiguous one; the limits are in tensor_map.hpp
//   tma_load(target, map, barrier, c0..c4)       one thread: the box at these coordinates, zeros outside of the tensor;
//                                                its bytes count as arrived at the barrier
//   tma_store(map, source, c0..c4)               one thread: clipped to the tensor; coordinates must not be negative
//   bulk_commit(), bulk_wait_read<left>(), bulk_wait<left>()    groups of this thread's stores: sources may be reused, or
//                                                               all is written
//   prefetch(map)                                one thread: the descriptor into its cache
//   fence_async_proxy()                          each writing thread, behind its writes to shared memory and in front of
//                                                the barrier, before tma_store or wgmma read them
//
// Barriers that count arrivals and bytes (mbarrier, sm_90; in shared memory)
//   struct Barrier;  barrier_init(b, arrivals)   one thread, then fence_barrier_init() by it, then __syncthreads
//   barrier_expect(b, bytes)                     arrives, and lets the phase wait for that many bytes
//   barrier_arrive(b)
//   barrier_wait(b, parity)                      until the phase of that parity is complete
//   named_barrier(id, threads)                   bar.sync: id 1..15, threads a multiple of 32
//
// Clusters of blocks (sm_90), which run at the same time and reach each other's shared memory. A launch without them has
// clusters of one block.
//   cluster_rank()                               of this block in its cluster
//   cluster_sync()                               all threads of all blocks of the cluster wait here for each other; whole
//                                                warps must call. It belongs between the fence_barrier_init() of every
//                                                block and the first time that one reaches another. No block may end
//                                                before it has waited for all that others send it
//   tma_load_multicast(target, map, barrier, blocks, c0..c4)    one thread: tma_load into every block of which `blocks` has
//                                                the bit, at the same offset; the bytes count as arrived at the same
//                                                barrier of each of them, at a time of its own
//   barrier_arrive_at(barrier, rank)             barrier_arrive at the same barrier of another block (or this one). It says
//                                                that stages were read, and publishes nothing
//   load4_cluster(address, rank)                 four floats at the same address of another block (or this one): what was
//                                                there when the cluster last met in cluster_sync(), and must stay there
//                                                until it meets again
//
// Tensor cores of a warpgroup (wgmma, sm_90a; every thread of four neighbouring warps must call)
//   enum class Swizzle { none, bytes32, bytes64, bytes128 }
//   operand(start, lbo, sbo, swizzle)            a shared-memory descriptor; start is an address, lbo and sbo are bytes
//   advance(descriptor, bytes)                   the same operand `bytes` further on
//   wgmma<N, transpose_a, transpose_b>(sum[N / 2], a, b)     sum += 64 x N products over 16 bf16 terms; transpose: the
//                                                            operand lies M- or N-major; a may also be a thread's four
//                                                            registers of mma_bf16, then without transpose_a
//   wgmma_tf32<N>(sum[N / 2], a[4], b)           the same over 8 tf32 terms, which must have been rounded; a is a thread's
//                                                registers of mma_tf32, b lies K-major
//   store4_operand(place, float4)                four values of an operand, 16 bytes of shared memory
//   wgmma_fence()                                before the first wgmma, and after any thread touched `sum`
//   wgmma_commit(), wgmma_wait<left>()           groups of them; `sum` and the operands are in use until then
//   hold(sum)                                    keeps the compiler from moving accesses of `sum` across it: before the
//                                                first fence and after wgmma_wait<0>; never while products are under way,
//                                                or the assembler serialises them
//   raise_registers<n>() / lower_registers<n>()  setmaxnreg by all warps of a warpgroup
//   elect_one()                                  true in one lane of a converged warp
//
// Host
//   architecture()            80, 86, 89, 90 ...: of the current device; of the machine that the emulator plays
//   multiprocessors()         of the current device; few in the emulator, so that persistent kernels come round
#pragma once
#ifdef CONVNET_EMU
#include "../emu/emu.hpp"
#else
#include "gpu/barrier.cuh"
#include "gpu/cluster.cuh"
#include "gpu/copy_async.cuh"
#include "gpu/launch.cuh"
#include "gpu/math.cuh"
#include "gpu/memory.cuh"
#include "gpu/mma.cuh"
#include "gpu/tma.cuh"
#include "gpu/warp.cuh"
#include "gpu/wgmma.cuh"
#endif
