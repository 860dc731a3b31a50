// Ordered sums: partial results of a split reduction, and rows of an activation (bias gradients).
//
// What       sum_parts: out[i] = (part 0 [i] + part 1 [i]) + ..., then what a Finish asks for.
//            sum_gradients: the same of a weight gradient and of a bias gradient, in one launch.
//            sum_rows: the sums of an activation's channels over pixels and images, block of images by
//            block. No atomics, every order is fixed.
// Work       sum_parts, sum_gradients: one thread per four values. sum_rows: one block per (channel,
//            image block), whose sums are then added like parts; thread t adds the groups of four t, t +
//            kThreads, ..., then warps by a butterfly, then thread 0 the warps in ascending order. Short
//            rows have one warp per channel, which goes through the blocks of images itself.
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

// The quad at `first` of `count` values, or the last 1..3 of them.
template <class Element>
__device__ __forceinline__ void store_some(Element* out, int64_t first, int64_t count, float4 v) {
  if (first + 4 <= count) {
    store4(out + first, v);
  } else {
    store(out + first, v.x);
    if (first + 1 < count) store(out + first + 1, v.y);
    if (first + 2 < count) store(out + first + 2, v.z);
  }
}

// The sum of a row of `size` values, a multiple of 4, over a warp of kThreads threads that share it; in
// every lane.
template <int kThreads, class Element>
__device__ __forceinline__ float sum_row(const Element* row, int64_t size) {
  float sum = 0.0f;
  for (int64_t i = threadIdx.x % kThreads * 4; i < size; i += kThreads * 4) {
    const float4 v = load4(row + i);
    sum += (v.x + v.y) + (v.z + v.w);
  }
  return warp_sum(sum);
}

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
  store_some(out, first, count, sum);
}

// `parts` partial results of `count` values, `stride` floats apart, and where their sum goes.
struct Parts {
  int64_t count;
  int parts;
  int64_t stride;
  const float* partial;
  float* out;
};

// The first blocks sum parts of the weight gradient.
__global__ void __launch_bounds__(kSumThreads)
    sum_gradients_kernel(unsigned weight_blocks, const Parts weight, const Parts bias) {
  begin_kernel();
  const bool of_weight = blockIdx.x < weight_blocks;
  const Parts p = of_weight ? weight : bias;  // a reference would cost memory of the thread
  const int64_t block = blockIdx.x - (of_weight ? 0 : weight_blocks);
  const int64_t first = (block * blockDim.x + threadIdx.x) * 4;
  if (first >= p.count) return;
  float4 sum = load4(p.partial + first);
  for (int part = 1; part < p.parts; ++part)
    sum = add(sum, load4(p.partial + part * p.stride + first));
  store_some(p.out, first, p.count, sum);
}

// dy [blocks][rows][size] -> partial [blocks][stride], size a multiple of 4.
template <int kThreads, class Element>
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(int64_t size, int64_t stride, const Element* dy, float* partial) {
  begin_kernel();
  auto& warp_sums = shared_storage<float[kThreads / 32]>();
  const float sum =
      sum_row<kThreads>(dy + (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * size, size);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();  // every warp's sum is visible to thread 0
  if (threadIdx.x != 0) return;
  float total = warp_sums[0];
  for (int warp = 1; warp < kThreads / 32; ++warp) total += warp_sums[warp];
  partial[int64_t{blockIdx.y} * stride + blockIdx.x] = total;
}

// dy [blocks][rows][size] -> out [rows]
template <class Element>
__global__ void __launch_bounds__(kSumThreads)
    sum_short_rows_kernel(int blocks, int64_t rows, int64_t size, const Element* dy, float* out) {
  begin_kernel();
  const int64_t row = int64_t{blockIdx.x} * (kSumThreads / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  float sum = sum_row<32>(dy + row * size, size);
  for (int block = 1; block < blocks; ++block)
    sum += sum_row<32>(dy + (block * rows + row) * size, size);
  if (threadIdx.x % 32 == 0) out[row] = sum;
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

// Both sums; either may be empty.
void sum_gradients(const Parts& weight, const Parts& bias, Stream stream) {
  // Where values are few, parts are many: blocks are small enough to fill a large GPU.
  const int64_t quads = ceil_div(weight.count, 4);
  const int64_t threads = std::clamp<int64_t>(round_up(ceil_div(quads, 132), 32), 32, kSumThreads);
  const unsigned weight_blocks = unsigned(ceil_div(quads, threads));
  const unsigned blocks = weight_blocks + unsigned(ceil_div(bias.count, 4 * threads));
  if (blocks > 0)
    launch(sum_gradients_kernel, Dim3(blocks), Dim3(unsigned(threads)), 0, stream, weight_blocks,
           weight, bias);
}

// Floats of workspace that sum_rows takes.
constexpr int64_t sum_rows_workspace(int64_t blocks, int64_t rows) {
  return blocks * round_up(rows, 4);
}

// dbias[row] = sum over blocks and the `size` values of a row of dy [blocks][rows][size]; what is
// returned remains to be summed.
template <class Element>
Parts sum_rows(int64_t blocks,
               int64_t rows,
               int64_t size,
               const Element* dy,
               float* dbias,
               float* workspace,
               Stream stream) {
  constexpr int kThreads = 256;
  if (size < 4 * kThreads) {  // linear layers and small maps: one warp has enough threads for a row
    launch(sum_short_rows_kernel<Element>, Dim3(unsigned(ceil_div(rows, kSumThreads / 32))),
           Dim3(kSumThreads), 0, stream, int(blocks), rows, size, dy, dbias);
    return {};
  }
  const int64_t stride = round_up(rows, 4);
  launch(sum_rows_kernel<kThreads, Element>, Dim3(unsigned(rows), unsigned(blocks)), Dim3(kThreads),
         kThreads / 32 * sizeof(float), stream, size, stride, dy, workspace);
  return {rows, int(blocks), stride, workspace, dbias};
}

}  // namespace
}  // namespace convnet
