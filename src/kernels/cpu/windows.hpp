// Max-pooling of some rows of one channel, a pixel's lanes at a time (maxpool.hpp).
#pragma once
#include <cstdint>
#include <limits>

#include "../shapes.hpp"
#include "level.hpp"

namespace convnet::cpu {

// A value takes the maximum's place where it is larger, or NaN; a maximum that is NaN is not equal to itself and stays.
// kStep: from one value to the next.
template <int kStep>
CONVNET_INLINE inline void take(
    const float* values, int32_t place, int64_t n, int64_t stride, float* best, int32_t* places) {
  for (int64_t i = 0; i < n; ++i) {
    const float value = values[i * (kStep ? kStep : stride)], maximum = best[i];
    const bool taken = (maximum == maximum) & !(value <= maximum);
    best[i] = taken ? value : maximum;
    places[i] = taken ? place : places[i];
  }
}

// The pooled rows p0 to p1. `x`: [H][W][L] of the channel, of which rows from `row0` on are there: row h lies at
// x + (h - row0) * W * L. y and argmax (may be null): [P][Q][L], whole. places: memory for the larger of L and Q.
CONVNET_INLINE inline void maxima(const PoolShape& shape,
                                  const float* x,
                                  int64_t row0,
                                  int64_t p0,
                                  int64_t p1,
                                  float* y,
                                  uint8_t* argmax,
                                  int32_t* places) {
  const int64_t L = shape.lanes, W = shape.W, Q = shape.Q, size = shape.size, stride = shape.stride;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  for (int64_t p = p0; p < p1; ++p) {
    const int64_t top = p * stride - shape.pad_top;
    const int64_t r0 = top < 0 ? -top : 0, r1 = top + size > shape.H ? shape.H - top : size;
    const float* const rows = x + (top - row0) * W * L;
    float* const out = y + p * Q * L;
    uint8_t* const winners = argmax ? argmax + p * Q * L : nullptr;
    if (L == 1) {  // the pixels of a row are neighbours then: tap by tap
      for (int64_t q = 0; q < Q; ++q) {
        const int64_t left = q * stride - shape.pad_left;
        out[q] = kLowest;
        places[q] = static_cast<int32_t>(r0 * size + (left < 0 ? -left : 0));
      }
      for (int64_t r = r0; r < r1; ++r) {
        for (int64_t s = 0; s < size; ++s) {
          // the outputs whose pixel under this tap exists
          const int64_t offset = s - shape.pad_left;
          const int64_t q0 = offset < 0 ? (-offset + stride - 1) / stride : 0;
          const int64_t end = W - 1 - offset < 0 ? 0 : (W - 1 - offset) / stride + 1,
                        q1 = end < Q ? end : Q;
          const float* const from = rows + r * W + offset + q0 * stride;
          const auto place = static_cast<int32_t>(r * size + s);
          if (stride == 2)
            take<2>(from, place, q1 - q0, 2, out + q0, places + q0);
          else
            take<0>(from, place, q1 - q0, stride, out + q0, places + q0);
        }
      }
      if (winners)
        for (int64_t q = 0; q < Q; ++q) winners[q] = static_cast<uint8_t>(places[q]);
      continue;
    }
    for (int64_t q = 0; q < Q; ++q) {
      const int64_t left = q * stride - shape.pad_left;
      const int64_t s0 = left < 0 ? -left : 0, s1 = left + size > W ? W - left : size;
      // Where all are -inf, the first pixel of the image that the window has is its maximum.
      for (int64_t l = 0; l < L; ++l) out[q * L + l] = kLowest;
      for (int64_t l = 0; l < L; ++l) places[l] = static_cast<int32_t>(r0 * size + s0);
      for (int64_t r = r0; r < r1; ++r)
        for (int64_t s = s0; s < s1; ++s)
          take<1>(rows + (r * W + left + s) * L, static_cast<int32_t>(r * size + s), L, 1,
                  out + q * L, places);
      if (winners)
        for (int64_t l = 0; l < L; ++l) winners[q * L + l] = static_cast<uint8_t>(places[l]);
    }
  }
}

// The gradients of rows h0 to h1: sums of dy over the windows whose maximum is a pixel, in row order. dy, argmax and
// mask (may be null): [P][Q][L], whole; row h goes to dx + (h - h0) * W * L.
CONVNET_INLINE inline void gather(const PoolShape& shape,
                                  const float* dy,
                                  const uint8_t* argmax,
                                  const float* mask,
                                  int64_t h0,
                                  int64_t h1,
                                  float* dx) {
  const int64_t L = shape.lanes, size = shape.size, stride = shape.stride;
  for (int64_t h = h0; h < h1; ++h) {
    const int64_t row = h + shape.pad_top;
    const int64_t p0 = row < size ? 0 : (row - size) / stride + 1;
    const int64_t p1 = row / stride < shape.P ? row / stride + 1 : shape.P;
    for (int64_t w = 0; w < shape.W; ++w) {
      const int64_t column = w + shape.pad_left;
      const int64_t q0 = column < size ? 0 : (column - size) / stride + 1;
      const int64_t q1 = column / stride < shape.Q ? column / stride + 1 : shape.Q;
      float* const sum = dx + ((h - h0) * shape.W + w) * L;
      for (int64_t l = 0; l < L; ++l) sum[l] = 0.0f;
      for (int64_t p = p0; p < p1; ++p) {
        for (int64_t q = q0; q < q1; ++q) {
          const int64_t at = (p * shape.Q + q) * L;
          const auto place = static_cast<int32_t>((row - p * stride) * size + column - q * stride);
          if (mask)
            for (int64_t l = 0; l < L; ++l)
              sum[l] += (argmax[at + l] == place) & (mask[at + l] > 0.0f) ? dy[at + l] : 0.0f;
          else
            for (int64_t l = 0; l < L; ++l) sum[l] += argmax[at + l] == place ? dy[at + l] : 0.0f;
        }
      }
    }
  }
}

// Memory that maxima() works in.
inline int64_t places_needed(const PoolShape& shape) {
  return shape.Q > shape.lanes ? shape.Q : shape.lanes;
}

}  // namespace convnet::cpu
