// Products without BLAS, where vectors and multiply-add can be had. A convolution is not unfolded: vectors hold neighbouring
// lanes, and a tile of filters and lanes is summed in registers over all channels and taps. What BLAS would copy twice
// (unfolded, then packed) is read where it lies.
#pragma once
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../shapes.hpp"
#include "work.hpp"

namespace convnet::cpu {

// Of one group of one image block: y [K][P][Q][L] = filters * x [C][H][W][L] (+ bias, then ReLU, or 0 where mask is not
// positive).
struct Direct {
  ConvShape shape;
  int64_t C, K;  // of the group
  const float* bias;
  bool relu;
};

// Whether it is quicker than BLAS: lanes fill a vector.
bool takes_direct(const ConvShape& shape);

// Whether the processor has vectors, and multiplies and adds at once.
bool fuses();

// Filters of a tile that begins at filter k of K; and where all of them begin.
constexpr int64_t kMostFilters = 12;
int tile_filters(int64_t k, int64_t K);
std::vector<int64_t> filter_tiles(int64_t K);

// Calls run(integral constant) with as many filters as a tile has.
template <class Run>
void with_count(int filters, const Run& run) {
  switch (filters) {
    case 12:
      return run(std::integral_constant<int, 12>{});
    case 6:
      return run(std::integral_constant<int, 6>{});
    case 4:
      return run(std::integral_constant<int, 4>{});
    case 2:
      return run(std::integral_constant<int, 2>{});
    default:
      return run(std::integral_constant<int, 1>{});
  }
}

// One row of outputs of the tile of filters that begins at k. `packed`: the group's, of every tile [tap][filter].
void direct_row(const Direct& d,
                const float* x,
                const float* packed,
                int64_t k,
                float* y,
                const float* mask,
                int64_t p);

// The whole convolution, a row of a tile per task. weight(group, tap, k); bias and mask may be null.
template <class Weight>
void convolve(const ConvShape& shape,
              const float* x,
              const Weight& weight,
              const float* bias,
              bool relu,
              float* y,
              const float* mask) {
  const int64_t g = shape.groups, C = shape.C / g, K = shape.K / g, L = shape.lanes,
                taps = C * shape.R * shape.S;
  const int64_t in = C * shape.H * shape.W * L, out = K * shape.P * shape.Q * L;
  const std::vector<int64_t> tiles = filter_tiles(K);
  const int64_t many = static_cast<int64_t>(tiles.size());
  float* const packed = scratch(Scratch::shared, g * taps * K);
  in_parallel(g * many, [&](int64_t index) {
    const int64_t group = index / many, k = tiles[static_cast<std::size_t>(index % many)];
    float* to = packed + (group * K + k) * taps;
    const int filters = tile_filters(k, K);
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int f = 0; f < filters; ++f) *to++ = weight(group, tap, k + f);
  });
  in_parallel(shape.N / L * g * many * shape.P, [&](int64_t index) {
    const int64_t p = index % shape.P, tile = index / shape.P % many, part = index / shape.P / many,
                  group = part % g;
    const Direct direct{shape, C, K, bias ? bias + group * K : nullptr, relu};
    direct_row(direct, x + part * in, packed + group * taps * K,
               tiles[static_cast<std::size_t>(tile)], y + part * out,
               mask ? mask + part * out : nullptr, p);
  });
}

// With fewer lanes vectors run along the rows, over pixels and lanes: of an image that has been laid out with zeros around
// it, and a plane for each remainder of row and column by the stride, so that a tap is one distance for all pixels of the
// image. What is computed between two rows is thrown away.
bool takes_flat(const ConvShape& shape);
void convolve_flat(const ConvShape& shape,
                   const float* x,
                   const float* weight,
                   const float* bias,
                   bool relu,
                   float* y);

// y [filter] rows of n values, whole vectors of 16: sums over C channels, `step` apart, and taps, of which t reads
// x + offset[t]. weight [C][tap][filter], as many filters as a tile has; bias may be null.
void flat_sums(int filters,
               const float* x,
               const int64_t* offset,
               int64_t taps,
               int64_t C,
               int64_t step,
               const float* weight,
               const float* bias,
               float* y,
               int64_t n);

// Linear layers, from the weight where it lies: sums [lane][feature] of n features, whose weights begin at `weight`; and
// gradients of C inputs, dx [input][lane], whose weights begin there (lanes in whole vectors).
bool takes_direct_features(const LinearShape& shape);
bool takes_direct_inputs(const LinearShape& shape);
void feature_sums(
    const LinearShape& shape, const float* x, const float* weight, int64_t n, float* sums);
void input_gradients(
    const LinearShape& shape, const float* dy, const float* weight, int64_t C, float* dx);

// The gradient of filters of one group, summed over all image blocks in order.
struct Gradient {
  ConvShape shape;
  int64_t K;  // of the group
};

// The gradient of the input is the convolution of dy with the filters turned around: its shape, for a stride of 1.
inline ConvShape turned(const ConvShape& shape) {
  ConvShape other = shape;
  other.C = shape.K, other.H = shape.P, other.W = shape.Q;
  other.K = shape.C, other.P = shape.H, other.Q = shape.W;
  other.pad_top = shape.R - 1 - shape.pad_top, other.pad_left = shape.S - 1 - shape.pad_left;
  return other;
}

inline bool takes_direct_data(const ConvShape& shape) {
  return shape.stride == 1 && shape.pad_top < shape.R && shape.pad_left < shape.S &&
         takes_direct(shape);
}

bool takes_direct_gradient(const ConvShape& shape);

// Filters of a tile.
int gradient_filters(const ConvShape& shape, int64_t k, int64_t K);

// Rows of outputs at a time: their rows of dy, of the most filters that a tile has, stay in the cache.
inline int64_t gradient_band(const ConvShape& shape) {
  const int64_t rows = (1 << 15) / (4 * shape.Q * shape.lanes);
  return rows < 1 ? 1 : rows > shape.P ? shape.P : rows;
}

// Floats of a row of x as the gradient reads it.
inline int64_t gradient_row(const ConvShape& shape) {
  const int64_t planes = shape.stride < shape.S ? shape.stride : shape.S;
  return planes * (shape.Q + (shape.S - 1) / shape.stride) * shape.lanes;
}

// Floats of memory that a tile needs for so many channels: its sums, and rows of x.
int64_t gradient_sums(const ConvShape& shape, int64_t channels);
inline int64_t gradient_pixels(const ConvShape& shape, int64_t channels) {
  return channels * ((gradient_band(shape) - 1) * shape.stride + shape.R) * gradient_row(shape);
}

// x and dy: the group's in the first image block; dweight: the group's.
void direct_gradient(const Gradient& d,
                     const float* x,
                     const float* dy,
                     int64_t k,
                     int64_t c0,
                     int64_t c1,
                     float* sums,
                     float* pixels,
                     float* dweight);

}  // namespace convnet::cpu
