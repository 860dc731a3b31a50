// A gaussian blur of every map by itself.
//
// What       y(h,w) = sum over r and s of tap(r) tap(s) x(h + r - size/2, w + s - size/2), zeros outside
//            of the map: along the row first, then over the rows, in ascending order. dx is the blur
//            of dy, since the taps are symmetric.
// Tensors    x, y [N/L][C][H][W][L] by precision; sums are float32, rounded once.
// Work       one thread per four neighbouring lanes walks down a column, or a segment of it, with the
//            sums of `size` rows in registers. Up to 256 threads per block.
// Shared     none: windows of neighbouring columns meet in the L1 and L2 caches.
// Barriers   none.
// Needs      lanes a multiple of 8, size 3, 5, 7 or 9, std > 0, 16-byte aligned arrays; y is not x.
// Cost       8 bytes per value, half of it in bf16, and 4 size bytes out of the L1 cache; 4 size FLOP
//            per value: bound by memory.
#include "blur.hpp"

#include <cmath>

#include "arch/arch.cuh"
#include "tile/square_windows.cuh"

namespace convnet {
namespace {

template <class T, int kSize>
__global__ void __launch_bounds__(kQuadThreads)
    blur_kernel(int64_t lanes, ColumnGrid columns, BlurTaps taps, const T* x, T* __restrict__ y) {
  begin_kernel();
  const ColumnPlace at = column_place(columns, lanes);
  if (!at.inside) return;
  const Plane<T> plane(x, columns, at, lanes);
  const auto row = [&](int h) {
    Lanes<4> sum{};
#pragma unroll
    for (int s = 0; s < kSize; ++s) {
      const Lanes<4> value = plane.read(h, at.column + s - kSize / 2);
#pragma unroll
      for (int l = 0; l < 4; ++l) sum.v[l] = fma_rn(taps.tap[s], value.v[l], sum.v[l]);
    }
    return sum;
  };
  SquareWindow<kSize> window(kSize, kSize / 2, at.begin, row);
#pragma unroll 1
  for (int h = at.begin; h < at.end; ++h) {
    window.move(h, row);
    Lanes<4> sum{};
#pragma unroll
    for (int r = 0; r < kSize; ++r)
#pragma unroll
      for (int l = 0; l < 4; ++l) sum.v[l] = fma_rn(taps.tap[r], window.rows[r].v[l], sum.v[l]);
    store(y + at.first + (int64_t{h} * columns.W + at.column) * lanes, sum);
  }
}

template <class T>
auto kernel_of(int64_t size) {
  return size == 3   ? blur_kernel<T, 3>
         : size == 5 ? blur_kernel<T, 5>
         : size == 7 ? blur_kernel<T, 7>
                     : blur_kernel<T, 9>;
}

void check(const char* op, const BlurShape& s) {
  require(s.size >= 3 && s.size <= 9 && s.size % 2 == 1, op,
          ": size must be 3, 5, 7 or 9 pixels, got size=", s.size);
  require(s.std > 0.0f && std::isfinite(s.std), op,
          ": std must be a positive number of pixels, got std=", s.std);
}

}  // namespace

void blur(const BlurShape& shape, Precision precision, const void* x, void* y, Stream stream) {
  const ColumnGrid columns = column_grid("blur", shape.N, shape.C, shape.H, shape.W, shape.lanes);
  check("blur", shape);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(kernel_of<T>(shape.size), columns.grid.grid(), columns.grid.block(), 0, stream,
           shape.lanes, columns, blur_taps(shape), static_cast<const T*>(x), static_cast<T*>(y));
  });
}

}  // namespace convnet
