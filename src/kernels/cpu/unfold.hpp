// "im2col": the pixels of an image under every tap of a filter, so that a convolution is a product of matrices. Because the
// lanes lie innermost, the pixels of an output row under a tap are one run of memory where the stride is 1.
#pragma once
#include <cstdint>
#include <vector>

#include "../shapes.hpp"
#include "level.hpp"

namespace convnet::cpu {

// Some outputs: whole rows, or a part of one, so that they are one run of memory in every channel.
struct Tile {
  int64_t p0, p1, q0, q1;
  int64_t pixels() const { return (p1 - p0) * (q1 - q0); }
};

// The outputs of an image, in tiles of at most `pixels`, of about one size.
inline std::vector<Tile> tiles(int64_t P, int64_t Q, int64_t pixels) {
  std::vector<Tile> found;
  if (const int64_t fitting = pixels / Q; fitting >= 1) {
    const int64_t count = (P + fitting - 1) / fitting, rows = (P + count - 1) / count;
    for (int64_t p = 0; p < P; p += rows) found.push_back({p, p + rows < P ? p + rows : P, 0, Q});
  } else {
    const int64_t columns = pixels > 1 ? pixels : 1;
    for (int64_t p = 0; p < P; ++p)
      for (int64_t q = 0; q < Q; q += columns)
        found.push_back({p, p + 1, q, q + columns < Q ? q + columns : Q});
  }
  return found;
}

// The outputs in first..last whose pixel output * stride + tap - pad lies in 0..size: a range, maybe empty.
struct Range {
  int64_t first, last;
};

CONVNET_INLINE inline Range inside(
    int64_t tap, int64_t stride, int64_t pad, int64_t size, int64_t first, int64_t last) {
  const int64_t offset = tap - pad;
  int64_t low = offset < 0 ? (-offset + stride - 1) / stride : 0;
  int64_t high = size - 1 - offset < 0 ? 0 : (size - 1 - offset) / stride + 1;
  low = low < first ? first : low > last ? last : low;
  high = high > last ? last : high < low ? low : high;
  return {low, high};
}

// columns [c][r][s][pixel of the tile][lane] of channels c0 to c1 of x [C][H][W][L]; zero outside of the image.
CONVNET_INLINE inline void unfold(const ConvShape& shape,
                                  const float* x,
                                  const Tile& tile,
                                  int64_t c0,
                                  int64_t c1,
                                  float* columns) {
  const int64_t L = shape.lanes, stride = shape.stride, W = shape.W;
  for (int64_t c = c0; c < c1; ++c) {
    const float* const image = x + c * shape.H * W * L;
    for (int64_t r = 0; r < shape.R; ++r) {
      for (int64_t s = 0; s < shape.S; ++s) {
        const Range there = inside(s, stride, shape.pad_left, W, tile.q0, tile.q1);
        float* to = columns + ((c * shape.R + r) * shape.S + s) * tile.pixels() * L;
        for (int64_t p = tile.p0; p < tile.p1; ++p) {
          const int64_t h = p * stride + r - shape.pad_top;
          const bool exists = h >= 0 && h < shape.H;
          const int64_t first = exists ? there.first : tile.q1,
                        last = exists ? there.last : tile.q1;
          const int64_t left = (first - tile.q0) * L, run = (last - first) * L,
                        right = (tile.q1 - last) * L;
          for (int64_t i = 0; i < left; ++i) to[i] = 0.0f;
          to += left;
          if (run) {
            const float* from = image + (h * W + first * stride + s - shape.pad_left) * L;
            if (stride == 1) {
              for (int64_t i = 0; i < run; ++i) to[i] = from[i];
            } else {
              for (int64_t i = 0; i < run; i += L, from += stride * L)
                for (int64_t l = 0; l < L; ++l) to[i + l] = from[l];
            }
          }
          to += run;
          for (int64_t i = 0; i < right; ++i) to[i] = 0.0f;
          to += right;
        }
      }
    }
  }
}

// How many outputs a product takes: their unfolded input fits the cache, and there are tasks for several threads.
inline std::vector<Tile> forward_tiles(const ConvShape& shape, int64_t limit, int64_t tasks) {
  const int64_t per_pixel = shape.C / shape.groups * shape.R * shape.S * shape.lanes * 4;
  const int64_t share = shape.groups * shape.P * shape.Q * per_pixel / tasks;
  const int64_t bytes = share > limit ? limit : share < limit / 32 ? limit / 32 : share;
  return tiles(shape.P, shape.Q, bytes / per_pixel);
}

}  // namespace convnet::cpu
