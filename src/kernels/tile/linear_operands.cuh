// The operands of the fully-connected layers' products (gemm.cu), for the tile loop.
//
// x and dy lie as [N/L][features][L], weights as [C][K]. WeightOperands serves forward (WeightRows)
// and backward data (WeightDepth), GradientOperands backward filter.
#pragma once
#include "loaders.cuh"

namespace convnet {

// One of the three products, in GEMM letters: rows x columns outputs, `depth` terms each.
struct Product {
  int rows, depth;
  int K;  // filters: the length of a weight row
  int lanes;
  int64_t columns;
  int64_t depth_per_part;  // a multiple of kStep
  int64_t part_stride;     // floats from one part's output to the next
};

// Where image n's values lie in [N/L][features][L].
__device__ __forceinline__ int64_t image_offset(int64_t n, int64_t features, int lanes) {
  return n / lanes * (features * lanes) + n % lanes;
}

// Forward: weights with the filters contiguous.
template <class T>
struct WeightRows {
  RowSlots<T::kM, T::kThreads> slots;
  const float* weight;
  int64_t offset;
  int filters, K;

  __device__ __forceinline__
  WeightRows(const Product& p, const float* weight, int first_row, int first_depth)
      : weight(weight),
        offset(int64_t{first_depth + slots.row(0)} * p.K + first_row + slots.column()),
        filters(p.rows - first_row - slots.column()),
        K(p.K) {}

  // `left`: reduction rows that exist from this step on.
  __device__ __forceinline__ void fetch(int left) {
#pragma unroll
    for (int i = 0; i < slots.kCount; ++i)
      slots.value[i] = load_up_to_4(weight + offset + int64_t{i * slots.kRowsPerPass} * K,
                                    slots.used(i) && slots.row(i) < left ? filters : 0, K % 4 == 0);
    offset += int64_t{kStep} * K;
  }
};

// Backward data: weights with the reduction, over the filters, contiguous.
template <class T>
struct WeightDepth {
  DepthSlots<T::kM, T::kThreads> slots;
  const float* weight;
  int64_t offset;
  int channels, K;

  __device__ __forceinline__
  WeightDepth(const Product& p, const float* weight, int first_row, int first_depth)
      : weight(weight),
        offset(int64_t{first_row + slots.column(0)} * p.K + first_depth + slots.row()),
        channels(p.rows - first_row - slots.column(0)),
        K(p.K) {}

  __device__ __forceinline__ void fetch(int left) {
#pragma unroll
    for (int i = 0; i < slots.kCount; ++i) {
      const int channel = i * slots.kColumnsPerPass;
      slots.value[i] =
          load_up_to_4(weight + offset + int64_t{channel} * K,
                       slots.used(i) && channel < channels ? left - slots.row() : 0, K % 4 == 0);
    }
    offset += kStep;
  }
};

// Forward and backward data: x or dy with the images contiguous.
template <class T>
struct ImageRows {
  RowSlots<T::kN, T::kThreads> slots;
  const float* x;
  int64_t offset;
  int lanes;
  bool exists;

  __device__ __forceinline__
  ImageRows(const Product& p, const float* x, int64_t first_column, int first_depth)
      : x(x), lanes(p.lanes) {
    const int64_t n = first_column + slots.column();
    exists = n < p.columns;
    offset = image_offset(n, p.depth, p.lanes) + int64_t{first_depth + slots.row(0)} * p.lanes;
  }

  __device__ __forceinline__ void fetch(int left) {
#pragma unroll
    for (int i = 0; i < slots.kCount; ++i)
      slots.value[i] = exists && slots.used(i) && slots.row(i) < left
                           ? load4(x + offset + i * slots.kRowsPerPass * lanes)
                           : zero4();
    offset += kStep * lanes;
  }
};

// Backward filter: x or dy with the reduction, over the images, contiguous. kColumns features from
// `first` on.
template <int kColumns, int kThreads>
struct ImageDepth {
  DepthSlots<kColumns, kThreads> slots;
  const float* x;
  int64_t offset, next_block;
  int lanes, lanes_left, features;  // features: how many there are from this thread's first one on

  __device__ __forceinline__ ImageDepth(const float* x, int64_t first, int64_t features, int lanes)
      : x(x),
        offset((first + slots.column(0)) * lanes + slots.row()),
        next_block((features - 1) * lanes),
        lanes(lanes),
        lanes_left(lanes),
        features(static_cast<int>(features - first) - slots.column(0)) {}

  __device__ __forceinline__ void fetch() {
    if (lanes_left == 0) lanes_left = lanes, offset += next_block;
#pragma unroll
    for (int i = 0; i < slots.kCount; ++i) {
      const int feature = i * slots.kColumnsPerPass;
      slots.value[i] =
          slots.used(i) && feature < features ? load4(x + offset + feature * lanes) : zero4();
    }
    offset += kStep;
    lanes_left -= kStep;
  }
};

template <class T, class Weights>
struct WeightOperands {
  Weights a;
  ImageRows<T> b;
  int left;  // reduction rows of this part

  __device__ __forceinline__ WeightOperands(const Product& p,
                                            const float* weight,
                                            const float* x,
                                            int first_row,
                                            int64_t first_column,
                                            int first_depth,
                                            int depth)
      : a(p, weight, first_row, first_depth), b(p, x, first_column, first_depth), left(depth) {}

  __device__ __forceinline__ void fetch() {
    a.fetch(left);
    b.fetch(left);
    left -= kStep;
  }
  __device__ __forceinline__ void store(Stage<T>& stage) const {
    a.slots.store(stage.a);
    b.slots.store(stage.b);
  }
};

template <class T>
struct GradientOperands {
  ImageDepth<T::kM, T::kThreads> a;
  ImageDepth<T::kN, T::kThreads> b;
  __device__ __forceinline__ void fetch() {
    a.fetch();
    b.fetch();
  }
  __device__ __forceinline__ void store(Stage<T>& stage) const {
    a.slots.store(stage.a);
    b.slots.store(stage.b);
  }
};

}  // namespace convnet
