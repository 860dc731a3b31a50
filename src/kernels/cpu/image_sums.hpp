// Sums over the images, one for every value of an image: gradients of biases that each pixel has of its own.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../shapes.hpp"
#include "level.hpp"
#include "sums.hpp"
#include "work.hpp"

namespace convnet::cpu {

// sums [K][P][Q] of dy [N/L][K][P][Q][L]: lanes, then blocks in order.
inline void sum_images(const ConvShape& shape, const float* dy, float* sums) {
  const int64_t L = shape.lanes, rows = shape.K * shape.P * shape.Q, blocks = shape.N / L;
  in_pieces(rows, std::max<int64_t>(1, kPiece / shape.N), [&](int64_t first, int64_t last) {
    vectorised([&]() CONVNET_INLINE {
      for (int64_t row = first; row < last; ++row) {
        sums[row] = sum_of(dy + row * L, L);
        for (int64_t block = 1; block < blocks; ++block)
          sums[row] += sum_of(dy + (block * rows + row) * L, L);
      }
    });
  });
}

}  // namespace convnet::cpu
