// A bias for every filter and pixel: a row of lanes each.
#include "../position_bias.hpp"

#include <algorithm>

#include "checks.hpp"
#include "image_sums.hpp"
#include "level.hpp"
#include "work.hpp"

namespace convnet {

void add_position_bias(const ConvShape& shape,
                       Precision precision,
                       const void* x,
                       const float* bias,
                       void* y,
                       Stream) {
  cpu::check("add_position_bias", precision, shape);
  const int64_t L = shape.lanes, rows = shape.K * shape.P * shape.Q, blocks = shape.N / L;
  cpu::in_pieces(rows * blocks, std::max<int64_t>(1, cpu::kPiece / L),
                 [&](int64_t first, int64_t last) {
                   cpu::vectorised([&]() CONVNET_INLINE {
                     for (int64_t i = first; i < last; ++i) {
                       const float* const from = static_cast<const float*>(x) + i * L;
                       float* const to = static_cast<float*>(y) + i * L;
                       const float b = bias[i % rows];
                       for (int64_t l = 0; l < L; ++l) to[l] = from[l] + b;
                     }
                   });
                 });
}

void add_position_bias_backward(
    const ConvShape& shape, Precision precision, const void* dy, float* dbias, Stream) {
  cpu::check("add_position_bias_backward", precision, shape);
  cpu::sum_images(shape, static_cast<const float*>(dy), dbias);
}

}  // namespace convnet
