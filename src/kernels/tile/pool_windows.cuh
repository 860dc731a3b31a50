// Pooling windows: window p covers rows p * stride to p * stride + size - 1 of the padded image.
#pragma once
#include "quads.cuh"

namespace convnet {

__device__ __forceinline__ int clamp(int value, int low, int high) {
  return value < low ? low : value > high ? high : value;
}

// How many of the pixels first, first + 1, ... first + size - 1 an axis of `extent` has.
__device__ __forceinline__ int clipped(int first, int size, int extent) {
  const int end = first + size < extent ? first + size : extent;
  return end - (first > 0 ? first : 0);
}

// The windows along one axis that hold a pixel: first to last, none where last < first.
struct Covering {
  int first, last;

  // `at` is the pixel's padded coordinate, `count` how many windows there are.
  __device__ __forceinline__ Covering(int at, const PoolShape& shape, int64_t count)
      : first(at < static_cast<int>(shape.size)
                  ? 0
                  : static_cast<int>(static_cast<uint32_t>(at - static_cast<int>(shape.size)) /
                                     static_cast<uint32_t>(shape.stride)) +
                        1),
        last(static_cast<int>(static_cast<uint32_t>(at) / static_cast<uint32_t>(shape.stride))) {
    if (last >= count) last = static_cast<int>(count) - 1;
  }
};

// Columns in the order 0, 2, 4, ..., 1, 3, ...: the k-th of them, and which one a column is.
__device__ __forceinline__ int column_at(int k, int columns) {
  const int even = (columns + 1) / 2;
  return k < even ? 2 * k : 2 * (k - even) + 1;
}

__device__ __forceinline__ int place_of(int column, int columns) {
  return column / 2 + (column % 2 ? (columns + 1) / 2 : 0);
}

inline void check_pool(const char* op, const PoolShape& shape) {
  require(shape.size >= 1 && shape.size <= 15 && shape.stride >= 1 && shape.stride <= 65535, op,
          ": the window must be 1 to 15 pixels wide and the stride 1 to 65535",
          ", got size=", shape.size, " stride=", shape.stride);
  require(shape.pad_top >= 0 && shape.pad_top < shape.size && shape.pad_left >= 0 &&
              shape.pad_left < shape.size,
          op, ": padding must be smaller than the window, got pad_top=", shape.pad_top,
          " pad_left=", shape.pad_left, " size=", shape.size);
  require(shape.P >= 1 && shape.Q >= 1 && (shape.P - 1) * shape.stride - shape.pad_top < shape.H &&
              (shape.Q - 1) * shape.stride - shape.pad_left < shape.W,
          op, ": every window must hold a pixel, got ", shape.P, "x", shape.Q, " windows on a ",
          shape.H, "x", shape.W, " image; use the P and Q of PoolShape.of");
}

// The same for windows on what has been normalised.
inline void check_lrn_pool(const char* op, const LrnShape& lrn, const PoolShape& pool) {
  require(lrn.N == pool.N && lrn.C == pool.C && lrn.H == pool.H && lrn.W == pool.W &&
              lrn.lanes == pool.lanes,
          op, ": both shapes must have the same N, C, H, W and lanes, got ", lrn.N, "x", lrn.C, "x",
          lrn.H, "x", lrn.W, " in ", lrn.lanes, " lanes and ", pool.N, "x", pool.C, "x", pool.H,
          "x", pool.W, " in ", pool.lanes, " lanes");
  check_pool(op, pool);
}

}  // namespace convnet
