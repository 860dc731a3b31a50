// Normalisation over a square of pixels of one map.
//
// What       rnorm forward y_p = x_p d_p^-beta, d_p = k + alpha * sum of u_j^2 over the window of p, rows
//            and columns [p - size/2, p - size/2 + size) clipped to the map, with u = x. Backward dx_p =
//            dy_p d_p^-beta - 2 alpha beta u_p * sum of t_o over the o whose window holds p, t_o = dy_o
//            x_o d_o^(-beta-1); d is computed again, so that forward has nothing to keep. cnorm is the
//            same with u = x - the mean of x over the window, the mean taken as a constant backward.
// Tensors    x, y, dy, dx [N/L][C][H][W][L] by precision; workspace, float32: t in rnorm_backward, u
//            and behind it t in cnorm. Sums are float32: along a row first, then over the rows, in
//            ascending order.
// Work       a kernel each for u, y, t and dx. One thread per four neighbouring lanes walks down a
//            column, or a segment of it, with the sums of the window's rows in registers where size
//            is 3 or 5. For other sizes it sums the whole window for every pixel. Up to 256 threads
//            per block.
// Shared     none: windows of neighbouring columns meet in the L1 and L2 caches.
// Barriers   none; kernels of one op follow each other on the stream.
// Needs      lanes a multiple of 8, 1 <= size <= the larger side, 16-byte aligned arrays, a workspace.
// Cost       rnorm 8 bytes per value forward; backward 12 for t, 16 for dx; cnorm 8 more for u, which
//            is read where rnorm reads x again. In bf16 half of it, but for the workspace. Bound by
//            memory with size 3 and 5: 4 (size + 1) bytes per value and pass out of the L1 cache.
#include "spatial_norm.hpp"

#include <type_traits>

#include "arch/arch.cuh"
#include "tile/pool_windows.cuh"
#include "tile/square_windows.cuh"

namespace convnet {
namespace {

// The sum over the columns of a window around `column` of one row, of f(sum, value) = the next sum.
template <class T, class Function>
__device__ __forceinline__ Lanes<4> row_sum(
    const Plane<T>& plane, int h, int first, int size, Function f) {
  Lanes<4> sum{};
#pragma unroll
  for (int s = 0; s < size; ++s) {
    const Lanes<4> value = plane.read(h, first + s);
#pragma unroll
    for (int l = 0; l < 4; ++l) sum.v[l] = f(sum.v[l], value.v[l]);
  }
  return sum;
}

// Window sums of one tensor: the squares of u, or values as they are.
template <class T, int kSize, bool kSquares>
struct Sums {
  Plane<T> plane;
  int size, first;  // columns of a window
  SquareWindow<kSize> window;

  __device__ __forceinline__
  Sums(const Plane<T>& plane, const ColumnPlace& at, int size, int before)
      : plane(plane),
        size(kSize ? kSize : size),
        first(at.column - before),
        window(this->size, before, at.begin, [&](int h) { return row(h); }) {}

  __device__ __forceinline__ Lanes<4> row(int h) const {
    return row_sum(plane, h, first, kSize ? kSize : size, [](float sum, float value) {
      return kSquares ? fma_rn(value, value, sum) : add_rn(sum, value);
    });
  }

  // For the rows of a column in turn.
  __device__ __forceinline__ Lanes<4> at(int h) {
    return window.sum(h, [&](int r) { return row(r); });
  }
};

__device__ __forceinline__ Powers spatial_powers(const SpatialNormShape& shape, float sum) {
  return powers<false>(fma_rn(shape.alpha, sum, shape.k), shape.beta);
}

// u = x - the mean over the window.
template <class T, int kSize>
__global__ void __launch_bounds__(kQuadThreads) deviation_kernel(SpatialNormShape shape,
                                                                 ColumnGrid columns,
                                                                 const T* x,
                                                                 float* __restrict__ u) {
  begin_kernel();
  const ColumnPlace at = column_place(columns, shape.lanes);
  if (!at.inside) return;
  const int size = static_cast<int>(shape.size), before = size / 2;
  const Plane<T> plane(x, columns, at, shape.lanes);
  Sums<T, kSize, false> sums(plane, at, size, before);
  const int width = clipped(at.column - before, size, columns.W);
#pragma unroll 1
  for (int h = at.begin; h < at.end; ++h) {
    const Lanes<4> sum = sums.at(h), own = plane.read(h, at.column);
    const auto pixels = static_cast<float>(clipped(h - before, size, columns.H) * width);
    Lanes<4> result;
#pragma unroll
    for (int l = 0; l < 4; ++l) result.v[l] = sub_rn(own.v[l], sum.v[l] / pixels);
    store(u + at.first + (int64_t{h} * columns.W + at.column) * shape.lanes, result);
  }
}

// y = x d^-beta
template <class T, class U, int kSize>
__global__ void __launch_bounds__(kQuadThreads) normalise_kernel(
    SpatialNormShape shape, ColumnGrid columns, const T* x, const U* u, T* __restrict__ y) {
  begin_kernel();
  const ColumnPlace at = column_place(columns, shape.lanes);
  if (!at.inside) return;
  const int size = static_cast<int>(shape.size);
  Sums<U, kSize, true> squares(Plane<U>(u, columns, at, shape.lanes), at, size, size / 2);
#pragma unroll 1
  for (int h = at.begin; h < at.end; ++h) {
    const int64_t i = at.first + (int64_t{h} * columns.W + at.column) * shape.lanes;
    const Lanes<4> sum = squares.at(h), own = load<4>(x + i);
    Lanes<4> result;
#pragma unroll
    for (int l = 0; l < 4; ++l)
      result.v[l] = mul_rn(own.v[l], spatial_powers(shape, sum.v[l]).denominator);
    store(y + i, result);
  }
}

// t = dy x d^(-beta-1)
template <class T, class U, int kSize>
__global__ void __launch_bounds__(kQuadThreads) term_kernel(SpatialNormShape shape,
                                                            ColumnGrid columns,
                                                            const T* dy,
                                                            const T* x,
                                                            const U* u,
                                                            float* __restrict__ terms) {
  begin_kernel();
  const ColumnPlace at = column_place(columns, shape.lanes);
  if (!at.inside) return;
  const int size = static_cast<int>(shape.size);
  Sums<U, kSize, true> squares(Plane<U>(u, columns, at, shape.lanes), at, size, size / 2);
#pragma unroll 1
  for (int h = at.begin; h < at.end; ++h) {
    const int64_t i = at.first + (int64_t{h} * columns.W + at.column) * shape.lanes;
    const Lanes<4> sum = squares.at(h), own = load<4>(x + i), slope = load<4>(dy + i);
    Lanes<4> result;
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      const Powers power = spatial_powers(shape, sum.v[l]);
      result.v[l] = lrn_term(lrn_direct(slope.v[l], power), own.v[l], power);
    }
    store(terms + i, result);
  }
}

// dx = dy d^-beta - 2 alpha beta u * the sum of the terms
template <class T, class U, int kSize>
__global__ void __launch_bounds__(kQuadThreads) gradient_kernel(SpatialNormShape shape,
                                                                ColumnGrid columns,
                                                                const T* dy,
                                                                const U* u,
                                                                const float* terms,
                                                                T* __restrict__ dx) {
  begin_kernel();
  const ColumnPlace at = column_place(columns, shape.lanes);
  if (!at.inside) return;
  const int size = static_cast<int>(shape.size), before = size / 2;
  const Plane<U> plane(u, columns, at, shape.lanes);
  Sums<U, kSize, true> squares(plane, at, size, before);
  // The windows that hold p are those of the pixels [p + before - size + 1, p + before].
  Sums<float, kSize, false> sums(Plane<float>(terms, columns, at, shape.lanes), at, size,
                                 size - 1 - before);
  const float factor = -2.0f * shape.alpha * shape.beta;
#pragma unroll 1
  for (int h = at.begin; h < at.end; ++h) {
    const int64_t i = at.first + (int64_t{h} * columns.W + at.column) * shape.lanes;
    const Lanes<4> square = squares.at(h), sum = sums.at(h), slope = load<4>(dy + i),
                   own = plane.read(h, at.column);
    Lanes<4> result;
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      const float direct = lrn_direct(slope.v[l], spatial_powers(shape, square.v[l]));
      result.v[l] = fma_rn(mul_rn(factor, own.v[l]), sum.v[l], direct);
    }
    store(dx + i, result);
  }
}

ColumnGrid check(const char* op, const SpatialNormShape& s) {
  const ColumnGrid columns = column_grid(op, s.N, s.C, s.H, s.W, s.lanes);
  require(s.size >= 1 && s.size <= std::max(s.H, s.W), op,
          ": size must be 1 to the larger side of the image, got size=", s.size, " H=", s.H,
          " W=", s.W);
  return columns;
}

void require_workspace(const char* op, const float* workspace) {
  require(workspace, op, ": needs a workspace, got a null address");
}

int64_t values(const SpatialNormShape& s) { return s.N * s.C * s.H * s.W; }

// f(a constant): the size where rows stay in registers, else 0.
template <class Function>
void with_size(int64_t size, Function f) {
  if (size == 3)
    f(std::integral_constant<int, 3>{});
  else if (size == 5)
    f(std::integral_constant<int, 5>{});
  else
    f(std::integral_constant<int, 0>{});
}

// The kernels of an op, one behind the other.
template <class T>
struct Launches {
  const SpatialNormShape& shape;
  ColumnGrid columns;
  Stream stream;

  template <class Kernel, class... Operands>
  void start(Kernel kernel, Operands... operands) const {
    launch(kernel, columns.grid.grid(), columns.grid.block(), 0, stream, shape, columns,
           operands...);
  }

  void deviations(const T* x, float* u) const {
    with_size(shape.size, [&](auto size) { start(deviation_kernel<T, size()>, x, u); });
  }

  template <class U>
  void forward(const T* x, const U* u, T* y) const {
    with_size(shape.size, [&](auto size) { start(normalise_kernel<T, U, size()>, x, u, y); });
  }

  template <class U>
  void backward(const T* dy, const T* x, const U* u, float* terms, T* dx) const {
    with_size(shape.size, [&](auto size) {
      start(term_kernel<T, U, size()>, dy, x, u, terms);
      start(gradient_kernel<T, U, size()>, dy, u, static_cast<const float*>(terms), dx);
    });
  }
};

}  // namespace

int64_t rnorm_workspace(const SpatialNormShape& shape, Precision) {
  check("rnorm_workspace", shape);
  return values(shape) * int64_t{sizeof(float)};
}

int64_t cnorm_workspace(const SpatialNormShape& shape, Precision) {
  check("cnorm_workspace", shape);
  return 2 * values(shape) * int64_t{sizeof(float)};
}

void rnorm_forward(
    const SpatialNormShape& shape, Precision precision, const void* x, void* y, Stream stream) {
  const ColumnGrid columns = check("rnorm_forward", shape);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    const auto* from = static_cast<const T*>(x);
    Launches<T>{shape, columns, stream}.forward(from, from, static_cast<T*>(y));
  });
}

void rnorm_backward(const SpatialNormShape& shape,
                    Precision precision,
                    const void* dy,
                    const void* x,
                    void* dx,
                    float* workspace,
                    Stream stream) {
  const ColumnGrid columns = check("rnorm_backward", shape);
  require_workspace("rnorm_backward", workspace);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    const auto* from = static_cast<const T*>(x);
    Launches<T>{shape, columns, stream}.backward(static_cast<const T*>(dy), from, from, workspace,
                                                 static_cast<T*>(dx));
  });
}

void cnorm_forward(const SpatialNormShape& shape,
                   Precision precision,
                   const void* x,
                   void* y,
                   float* workspace,
                   Stream stream) {
  const ColumnGrid columns = check("cnorm_forward", shape);
  require_workspace("cnorm_forward", workspace);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    const auto* from = static_cast<const T*>(x);
    const Launches<T> launches{shape, columns, stream};
    launches.deviations(from, workspace);
    launches.forward(from, static_cast<const float*>(workspace), static_cast<T*>(y));
  });
}

void cnorm_backward(const SpatialNormShape& shape,
                    Precision precision,
                    const void* dy,
                    const void* x,
                    void* dx,
                    float* workspace,
                    Stream stream) {
  const ColumnGrid columns = check("cnorm_backward", shape);
  require_workspace("cnorm_backward", workspace);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    const auto* from = static_cast<const T*>(x);
    const Launches<T> launches{shape, columns, stream};
    launches.deviations(from, workspace);
    launches.backward(static_cast<const T*>(dy), from, static_cast<const float*>(workspace),
                      workspace + values(shape), static_cast<T*>(dx));
  });
}

}  // namespace convnet
