// Dropout of the values of a layer, with its mask.
#include "../dropout.hpp"

#include "checks.hpp"
#include "level.hpp"
#include "random.hpp"
#include "work.hpp"

namespace convnet {

void dropout_forward(const DropoutShape& shape,
                     Precision precision,
                     const void* x,
                     void* y,
                     uint8_t* mask,
                     const Control* control,
                     Stream) {
  cpu::check("dropout_forward", precision, shape);
  const uint64_t threshold = cpu::threshold(shape);
  const int64_t L = shape.lanes, rows = shape.N / L * shape.features;
  cpu::in_pieces(rows, 1 + 8192 / L, [&](int64_t first, int64_t last) {
    cpu::vectorised([&]() CONVNET_INLINE {
      for (int64_t row = first; row < last; ++row) {
        const int64_t image = row / shape.features * L, feature = row % shape.features;
        const float* const from = static_cast<const float*>(x) + row * L;
        float* const to = static_cast<float*>(y) + row * L;
        for (int64_t l = 0; l < L; ++l) {
          const bool kept = cpu::keeps(shape, threshold, *control, image + l, feature);
          mask[row * L + l] = kept;
          to[l] = from[l] * (kept ? 1.0f : 0.0f);
        }
      }
    });
  });
}

void dropout_backward(
    int64_t count, Precision precision, const void* dy, const uint8_t* mask, void* dx, Stream) {
  cpu::check_count("dropout_backward", precision, count);
  cpu::in_pieces(count, cpu::kPiece, [&](int64_t first, int64_t last) {
    cpu::vectorised([&]() CONVNET_INLINE {
      const float* const from = static_cast<const float*>(dy);
      float* const to = static_cast<float*>(dx);
      for (int64_t i = first; i < last; ++i) to[i] = from[i] * static_cast<float>(mask[i]);
    });
  });
}

}  // namespace convnet
