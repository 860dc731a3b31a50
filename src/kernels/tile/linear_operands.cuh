// The operands of the fully-connected layers' products (gemm.cu), for the tile loop.
//
// x and dy lie as [N/L][features][L], weights as [C][K] (bf16: [C][K8]). Forward and backward data
// are WeightOperands of WeightRows and WeightDepth, backward filter is GradientOperands.
#pragma once
#include "loaders.cuh"

namespace convnet {

// One of the three products, in GEMM letters: rows x columns outputs, `depth` terms each.
struct Product {
  int rows, depth;
  int weight_row;  // values of a row of the weights: K, in bf16 rounded up to a multiple of 8
  int lanes;
  int64_t columns;
  int64_t depth_per_part;  // whole stages
  int64_t part_stride;     // floats from one part's output to the next
};

// Where image n's values lie in [N/L][features][L].
__device__ __forceinline__ int64_t image_offset(int64_t n, int64_t features, int lanes) {
  return n / lanes * (features * lanes) + n % lanes;
}

// Forward: weights with the filters contiguous.
template <class T>
struct WeightRows {
  using Slots = RowSlots<typename T::Arithmetic, T::kM, T::kThreads>;
  using Element = typename T::Arithmetic::Element;
  const Element* weight;  // of slot 0
  int filters, weight_row;

  __device__ __forceinline__
  WeightRows(const Product& p, const Element* weight, int first_row, int first_depth)
      : weight(weight + int64_t{first_depth + Slots::row(0)} * p.weight_row + first_row +
               Slots::column()),
        filters(p.rows - first_row - Slots::column()),
        weight_row(p.weight_row) {}

  // `left`: reduction rows that exist from this unit on.
  __device__ __forceinline__ void copy(typename Slots::Panel& panel, int left) {
#pragma unroll
    for (int i = 0; i < Slots::kCount; ++i)
      Slots::copy(panel, i, weight + int64_t{i * Slots::kRowsPerPass} * weight_row,
                  Slots::row(i) < left, filters, weight_row % 4 == 0);
    weight += int64_t{T::Arithmetic::kDepth} * weight_row;
  }
};

// Backward data: weights with the reduction, over the filters, contiguous.
template <class T>
struct WeightDepth {
  using Slots = DepthSlots<typename T::Arithmetic, T::kM, T::kThreads>;
  using Element = typename T::Arithmetic::Element;
  const Element* weight;  // of slot 0
  int channels, weight_row;

  __device__ __forceinline__
  WeightDepth(const Product& p, const Element* weight, int first_row, int first_depth)
      : weight(weight + int64_t{first_row + Slots::column(0)} * p.weight_row + first_depth +
               Slots::row()),
        channels(p.rows - first_row - Slots::column(0)),
        weight_row(p.weight_row) {}

  __device__ __forceinline__ void copy(typename Slots::Panel& panel, int left) {
#pragma unroll
    for (int i = 0; i < Slots::kCount; ++i) {
      const int channel = i * Slots::kColumnsPerPass;
      Slots::copy(panel, i, weight + int64_t{channel} * weight_row, channel < channels,
                  left - Slots::row(), weight_row % 4 == 0);
    }
    weight += T::Arithmetic::kDepth;
  }
};

// Forward and backward data: x or dy with the images contiguous.
template <class T>
struct ImageRows {
  using Slots = RowSlots<typename T::Arithmetic, T::kN, T::kThreads>;
  using Element = typename T::Arithmetic::Element;
  const Element* x;  // of slot 0
  int lanes;
  bool exists;

  __device__ __forceinline__
  ImageRows(const Product& p, const Element* x, int64_t first_column, int first_depth)
      : lanes(p.lanes) {
    const int64_t n = first_column + Slots::column();
    exists = n < p.columns;
    this->x =
        x + image_offset(n, p.depth, p.lanes) + int64_t{first_depth + Slots::row(0)} * p.lanes;
  }

  __device__ __forceinline__ void copy(typename Slots::Panel& panel, int left) {
#pragma unroll
    for (int i = 0; i < Slots::kCount; ++i)
      Slots::copy(panel, i, x + i * Slots::kRowsPerPass * lanes, exists & (Slots::row(i) < left));
    x += T::Arithmetic::kDepth * lanes;
  }
};

template <class T, template <class> class Weights>
struct WeightOperands {
  using A = typename Weights<T>::Slots;
  using B = typename ImageRows<T>::Slots;
  using Element = typename T::Arithmetic::Element;
  Weights<T> weights;
  ImageRows<T> images;
  int left;  // reduction rows of this part

  __device__ __forceinline__ WeightOperands(const Product& p,
                                            const Element* weight,
                                            const Element* x,
                                            int first_row,
                                            int64_t first_column,
                                            int first_depth,
                                            int depth)
      : weights(p, weight, first_row, first_depth),
        images(p, x, first_column, first_depth),
        left(depth) {}

  // Units behind the end have no rows left.
  __device__ __forceinline__ void copy(Unit<WeightOperands>& unit, bool) {
    weights.copy(unit.a, left);
    images.copy(unit.b, left);
    left -= T::Arithmetic::kDepth;
  }
};

// Backward filter: x or dy with the reduction, over the images, contiguous. kColumns features from
// `first` on.
template <class Arithmetic, int kColumns, int kThreads>
struct ImageDepth {
  using Slots = DepthSlots<Arithmetic, kColumns, kThreads>;
  using Element = typename Arithmetic::Element;
  const Element* x;  // of slot 0
  int64_t next_block;
  int features;  // how many there are from this thread's first one on

  __device__ __forceinline__ ImageDepth(const Element* x, int first, int features, int lanes, int n)
      : x(x + image_offset(n, features, lanes) + int64_t{first + Slots::column(0)} * lanes),
        next_block(int64_t{features - 1} * lanes),
        features(features - first - Slots::column(0)) {}

  __device__ __forceinline__ void copy(typename Slots::Panel& panel, int lanes, bool exists) {
#pragma unroll
    for (int i = 0; i < Slots::kCount; ++i) {
      const int feature = i * Slots::kColumnsPerPass;
      Slots::copy(panel, i, x + int64_t{feature} * lanes, exists & (feature < features));
    }
    x += Arithmetic::kDepth;
  }
};

// All slots of a thread belong to the same images.
template <class T>
struct GradientOperands {
  using Arithmetic = typename T::Arithmetic;
  using Element = typename Arithmetic::Element;
  using Rows = ImageDepth<Arithmetic, T::kM, T::kThreads>;
  using Columns = ImageDepth<Arithmetic, T::kN, T::kThreads>;
  using A = typename Rows::Slots;
  using B = typename Columns::Slots;
  Rows rows;
  Columns columns;
  int lanes, lanes_left, left;  // of this block, of all images

  __device__ __forceinline__ GradientOperands(const Element* x,
                                              const Element* dy,
                                              int C,
                                              int K,
                                              int first_row,
                                              int first_column,
                                              int lanes,
                                              int images)
      : rows(x, first_row, C, lanes, A::row()),
        columns(dy, first_column, K, lanes, B::row()),
        lanes(lanes),
        lanes_left(lanes - A::eight() % lanes),
        left(images - A::eight()) {}

  // Units behind the end have no images left.
  __device__ __forceinline__ void copy(Unit<GradientOperands>& unit, bool) {
    while (lanes_left <= 0) {
      lanes_left += lanes;
      rows.x += rows.next_block;
      columns.x += columns.next_block;
    }
    rows.copy(unit.a, lanes, left > 0);
    columns.copy(unit.b, lanes, left > 0);
    lanes_left -= Arithmetic::kDepth;
    left -= Arithmetic::kDepth;
  }
};

}  // namespace convnet
