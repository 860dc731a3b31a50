// Ordered sums: partial results of a split reduction, and rows of an activation (bias gradients).
//
// What       sum_parts: out[i] = (part 0 [i] + part 1 [i]) + ..., then what a Finish asks for.
//            sum_rows: one value per image block and channel, added up by sum_parts over the
//            blocks. No atomics, every order is fixed.
// Work       sum_parts: one thread per four values. sum_rows: one block per (channel, image block);
//            thread t adds the groups of four t, t + kThreads, ..., then warps by a butterfly, then
//            thread 0 the warps in ascending order.
// Shared     sum_rows: one float per warp.
// Barriers   sum_rows: one, behind which thread 0 sees the sum of every warp.
//            Partial sums, biases and bias gradients are float32; what sum_parts writes and
//            sum_rows reads is float32 or bf16.
// Needs      parts `stride` floats apart, stride a multiple of 4; 16-byte aligned pointers.
// Cost       each partial value is read once: bound by memory, or by L2 where the parts still lie
//            there.
#pragma once
#include <type_traits>

#include "../arch/arch.cuh"
#include "dropout.cuh"
#include "epilogue.cuh"
#include "variants.cuh"

namespace convnet {

// What becomes of the sums of an activation [N / lanes][features][lanes] on their way to memory, in
// this order.
template <class Element>
struct Finish {
  const float* bias;  // [features], or null: none
  int64_t features, lanes;
  bool accumulate;  // what the activation held before is added
  bool relu;
  const Element* mask;  // like the activation, or null: 0 where it is not positive
  Dropout dropout;
};

namespace {

constexpr int kSumThreads = 256;

__device__ __forceinline__ void store(float* target, float value) { *target = value; }
__device__ __forceinline__ void store(bf16* target, float value) { *target = to_bf16(value); }

// v as an Element holds it.
template <class Element>
__device__ __forceinline__ float4 held(float4 v) {
  if constexpr (std::is_same_v<Element, bf16>)
    return float4{to_float(to_bf16(v.x)), to_float(to_bf16(v.y)), to_float(to_bf16(v.z)),
                  to_float(to_bf16(v.w))};
  else
    return v;
}

// What dropout makes of the quad at i: that of a kernel of its own, which reads values as they were
// stored.
template <class Element>
__device__ __forceinline__ float4 dropped(const Finish<Element>& finish, int64_t i, float4 v) {
  const Dropout& dropout = finish.dropout;
  v = held<Element>(v);
  if (!dropout.control) {
    const float f = dropout.factor;
    return float4{v.x * f, v.y * f, v.z * f, v.w * f};
  }
  const int64_t row = i / finish.lanes, block = row / finish.features;
  const int64_t n = block * finish.lanes + (i - row * finish.lanes);
  return keep(v, kept(dropout, n, row - block * finish.features));
}

template <class Element>
__global__ void __launch_bounds__(kSumThreads) sum_parts_kernel(int64_t count,
                                                                int parts,
                                                                int64_t stride,
                                                                const float* partial,
                                                                const Finish<Element> finish,
                                                                Element* out) {
  begin_kernel();
  const int64_t first = (int64_t{blockIdx.x} * kSumThreads + threadIdx.x) * 4;
  if (first >= count) return;
  float4 sum = load4(partial + first);
  for (int part = 1; part < parts; ++part) {
    sum = add(sum, load4(partial + part * stride + first));
  }
  if (finish.bias) sum = add(sum, finish.bias[first / finish.lanes % finish.features]);
  if (finish.accumulate) sum = add(sum, load4(out + first));
  if (finish.relu) sum = rectified(sum);
  if (finish.dropout.acts()) sum = dropped(finish, first, sum);
  if (finish.mask) sum = where_positive(sum, load4(finish.mask + first));
  if (first + 4 <= count) {
    store4(out + first, sum);
  } else {  // the last 1..3 values
    store(out + first, sum.x);
    if (first + 1 < count) store(out + first + 1, sum.y);
    if (first + 2 < count) store(out + first + 2, sum.z);
  }
}

// dy [blocks][rows][size] -> partial [blocks][stride], size a multiple of 4.
template <int kThreads, class Element>
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(int64_t size, int64_t stride, const Element* dy, float* partial) {
  begin_kernel();
  auto& warp_sums = shared_storage<float[kThreads / 32]>();
  const Element* row = dy + (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * size;
  float sum = 0.0f;
  for (int64_t i = threadIdx.x * 4; i < size; i += kThreads * 4) {
    const float4 v = load4(row + i);
    sum += (v.x + v.y) + (v.z + v.w);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();  // every warp's sum is visible to thread 0
  if (threadIdx.x != 0) return;
  sum = warp_sums[0];
  for (int warp = 1; warp < kThreads / 32; ++warp) sum += warp_sums[warp];
  partial[int64_t{blockIdx.y} * stride + blockIdx.x] = sum;
}

// out = the parts in ascending order, each round_up(count, 4) floats apart.
template <class Element>
void sum_parts(int64_t count,
               int64_t parts,
               const float* partial,
               Element* out,
               Stream stream,
               const Finish<Element>& finish = {}) {
  launch(sum_parts_kernel<Element>, Dim3(unsigned(ceil_div(count, 4 * kSumThreads))),
         Dim3(kSumThreads), 0, stream, count, int(parts), round_up(count, 4), partial, finish, out);
}

// dbias[row] = sum over blocks and the `size` values of a row of dy [blocks][rows][size]. The
// workspace takes blocks * round_up(rows, 4) floats.
template <class Element>
void sum_rows(int64_t blocks,
              int64_t rows,
              int64_t size,
              const Element* dy,
              float* dbias,
              float* workspace,
              Stream stream) {
  const Dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(blocks));
  const int64_t stride = round_up(rows, 4);
  if (size >= 1024)
    launch(sum_rows_kernel<256, Element>, grid, Dim3(256), 8 * sizeof(float), stream, size, stride,
           dy, workspace);
  else  // linear layers and small maps: one warp has enough threads for a row
    launch(sum_rows_kernel<32, Element>, grid, Dim3(32), sizeof(float), stream, size, stride, dy,
           workspace);
  sum_parts(rows, blocks, workspace, dbias, stream);
}

}  // namespace
}  // namespace convnet
