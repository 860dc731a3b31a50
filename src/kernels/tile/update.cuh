// One step of momentum SGD with weight decay, for all kernels that change weights.
//
// What       v = (momentum * v) - (lr * ((weight_decay * w) + g)); w = w + v. Every operation is
//            rounded on its own, so that any device, and NumPy, give the same bits: a resumed or
//            moved run does not drift, and neither does one whose gradients never reach memory.
//            Without weight decay the weight takes no part in v, whatever it is: 0 times infinity
//            would be no number.
//            Where g is not finite, w and v stay, and control->spoiled becomes 1: nothing that is not
//            a number ever gets into the weights by way of a gradient.
// Products   of which every sum is a gradient update the weights in their epilogue (update_matrix
//            here, update_sums in wgmma_filter.cuh). 18 bytes per weight come and go (w and v, and
//            the bf16 copy), which is most of what such a kernel does: weights and velocities are
//            fetched while it multiplies.
#pragma once
#include "../arch/arch.cuh"
#include "../control.hpp"
#include "weight_copy.cuh"

namespace convnet {

// Of one tensor in this step.
struct Rates {
  float lr, momentum, weight_decay;
  bool stopped;  // nothing may be written
  Control* control;
};

__device__ __forceinline__ Rates rates_of(Control* control, const Factors& factors) {
  return Rates{mul_rn(control->lr, factors.rate), mul_rn(control->momentum, factors.momentum),
               mul_rn(control->weight_decay, factors.decay), control->stopped != 0, control};
}

__device__ __forceinline__ void update(const Rates& rates,
                                       float& weight,
                                       float& velocity,
                                       float gradient) {
  if (!(fabsf(gradient) < INFINITY)) {
    rates.control->spoiled = 1;
    return;
  }
  const float decaying = rates.weight_decay == 0.0f ? 0.0f : weight;
  const float slope = add_rn(mul_rn(rates.weight_decay, decaying), gradient);
  velocity = sub_rn(mul_rn(rates.momentum, velocity), mul_rn(rates.lr, slope));
  weight = add_rn(weight, velocity);
}

__device__ __forceinline__ void update(const Rates& rates,
                                       float4& weight,
                                       float4& velocity,
                                       const float4& gradient) {
  update(rates, weight.x, velocity.x, gradient.x);
  update(rates, weight.y, velocity.y, gradient.y);
  update(rates, weight.z, velocity.z, gradient.z);
  update(rates, weight.w, velocity.w, gradient.w);
}

// A matrix of weights that is updated in place: what a product does with its sums instead of storing
// them.
struct WeightUpdate {
  float* weight;
  float* velocity;
  bf16* copy;     // may be null
  CopyRows rows;  // of the copy; the weight has rows.columns
  Control* control;
  Factors factors;

  __device__ __forceinline__ Rates rates() const { return rates_of(control, factors); }
  __device__ __forceinline__ void store(int64_t row,
                                        int column,
                                        const float4& w,
                                        const float4& v) const {
    store4(velocity + row * rows.columns + column, v);
    store4(weight + row * rows.columns + column, w);
    if (copy) store4(copy + row * rows.padded + column, w);
  }
  // One value, where rows are no whole quads.
  __device__ __forceinline__ void change(const Rates& rates,
                                         int64_t row,
                                         int column,
                                         float gradient) const {
    const int64_t i = row * rows.columns + column;
    update(rates, weight[i], velocity[i], gradient);
    if (copy) copy[row * rows.padded + column] = to_bf16(weight[i]);
  }
};

// Starts the way of a tile's weights and velocities into the second level of cache, for
// update_matrix to find them there.
template <int kThreads, int kRows, int kColumns>
__device__ __forceinline__ void prefetch_tile(const WeightUpdate& target,
                                              int first_row,
                                              int rows,
                                              int first_column) {
  constexpr int kLine = 32, kLines = (kColumns + kLine - 1) / kLine;  // of 128 bytes
  for (int i = threadIdx.x; i < kRows * kLines; i += kThreads) {
    const int row = first_row + i / kLines, column = first_column + i % kLines * kLine;
    if (row >= rows || column >= target.rows.columns) continue;
    const int64_t place = row * target.rows.columns + column;
    prefetch_l2(target.weight + place);
    prefetch_l2(target.velocity + place);
  }
}

// weight[row][column] is updated by sums, as store_matrix (epilogue.cuh) would store them. All
// loads of a row are under way before its first store.
template <class Sums>
__device__ __forceinline__ void update_matrix(
    const Sums& sums, const WeightUpdate& target, int first_row, int rows, int first_column) {
  const Rates rates = target.rates();
  if (rates.stopped) return;
  const int columns = static_cast<int>(target.rows.columns);
#pragma unroll
  for (int i = 0; i < Sums::kRows; ++i) {
    const int row = first_row + sums.row(i);
    if (row >= rows) continue;
    if (columns % 4 == 0) {
      const float* weights = target.weight + int64_t{row} * columns;
      const float* velocities = target.velocity + int64_t{row} * columns;
      float4 w[Sums::kQuads], v[Sums::kQuads];
#pragma unroll
      for (int j = 0; j < Sums::kQuads; ++j) {
        const int column = min(first_column + sums.column(j), columns - 4);
        w[j] = load4(weights + column);
        v[j] = load4(velocities + column);
      }
#pragma unroll
      for (int j = 0; j < Sums::kQuads; ++j) {
        const int column = first_column + sums.column(j);
        update(rates, w[j], v[j], sums.quad(i, j));
        if (column < columns) target.store(row, column, w[j], v[j]);
      }
    } else {
#pragma unroll
      for (int j = 0; j < Sums::kQuads; ++j) {
        const int column = first_column + sums.column(j);
        const float4 g = sums.quad(i, j);
        if (column < columns) target.change(rates, row, column, g.x);
        if (column + 1 < columns) target.change(rates, row, column + 1, g.y);
        if (column + 2 < columns) target.change(rates, row, column + 2, g.z);
        if (column + 3 < columns) target.change(rates, row, column + 3, g.w);
      }
    }
  }
}

}  // namespace convnet
