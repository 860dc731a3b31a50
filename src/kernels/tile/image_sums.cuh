// Sums over the images, one for every value of an image: gradients of biases that each pixel has of its own.
//
// What       sums[row] = sum over blocks and lanes of dy [blocks][rows][lanes], a row being a filter
//            and a pixel. No atomics, the order is fixed.
// Work       a warp per row, eight of them in a block; a thread adds every 32nd group of four
//            images, then the warp by a butterfly.
// Shared     none.
// Barriers   none.
// Needs      lanes a multiple of 4; 16-byte aligned pointers.
// Cost       each value is read once: bound by memory.
#pragma once
#include "../arch/arch.cuh"
#include "variants.cuh"

namespace convnet {
namespace {

constexpr int kImageSumThreads = 256;

template <class Element>
__global__ void __launch_bounds__(kImageSumThreads)
    sum_images_kernel(int64_t rows, int quads, int lanes, const Element* dy, float* sums) {
  begin_kernel();
  const int64_t row = int64_t{blockIdx.x} * (kImageSumThreads / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  const int in_block = lanes / 4;  // quads of a row in an image block
  float sum = 0.0f;
  for (int i = threadIdx.x % 32; i < quads; i += 32) {
    const int block = i / in_block;
    const float4 v = load4(dy + (block * rows + row) * lanes + (i - block * in_block) * 4);
    sum += (v.x + v.y) + (v.z + v.w);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) sums[row] = sum;
}

template <class Element>
void sum_images(const char* op,
                int64_t N,
                int64_t rows,
                int64_t lanes,
                const Element* dy,
                float* sums,
                Stream stream) {
  const Dim3 grid = tile_grid(op, ceil_div(rows, kImageSumThreads / 32), 1, 1);
  launch(sum_images_kernel<Element>, grid, Dim3(kImageSumThreads), 0, stream, rows, int(N / 4),
         int(lanes), dy, sums);
}

}  // namespace
}  // namespace convnet
