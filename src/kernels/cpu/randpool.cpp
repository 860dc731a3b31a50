// Stochastic pooling, a channel of an image block at a time, some lanes of a pixel at a time.
#include "../randpool.hpp"

#include <algorithm>
#include <limits>

#include "checks.hpp"
#include "level.hpp"
#include "random.hpp"
#include "work.hpp"

namespace convnet {
namespace {

constexpr int64_t kLanesOfTask = 64;

// A window, clipped to the image, in up to kLanesOfTask lanes: of each the largest value, its position and the sum of the
// weights.
struct Window {
  const float* x;  // the first lane of the first pixel of the channel
  int64_t L, W, size, top, left, h0, h1, w0, w1, n;
  float best[kLanesOfTask], sum[kLanesOfTask];
  int32_t position[kLanesOfTask];

  CONVNET_INLINE Window(const PoolShape& s, const float* image, int64_t p, int64_t q, int64_t first)
      : x(image + first),
        L(s.lanes),
        W(s.W),
        size(s.size),
        top(p * s.stride - s.pad_top),
        left(q * s.stride - s.pad_left),
        h0(std::max(top, int64_t{0})),
        h1(std::min(top + s.size, s.H)),
        w0(std::max(left, int64_t{0})),
        w1(std::min(left + s.size, s.W)),
        n(std::min(s.lanes - first, kLanesOfTask)) {
    for (int64_t l = 0; l < n; ++l) {
      best[l] = -std::numeric_limits<float>::infinity(), sum[l] = 0.0f;
      position[l] = place(h0, w0);
    }
    each([this](int64_t l, float v, int32_t at) CONVNET_INLINE {
      sum[l] += v > 0.0f ? v : 0.0f;
      // A maximum that is NaN is not equal to itself and stays.
      const bool taken = (best[l] == best[l]) & !(v <= best[l]);
      best[l] = taken ? v : best[l];
      position[l] = taken ? at : position[l];
    });
  }

  CONVNET_INLINE int32_t place(int64_t h, int64_t w) const {
    return static_cast<int32_t>((h - top) * size + w - left);
  }

  // Calls what(lane, value, position) for all values, in row order.
  template <class What>
  CONVNET_INLINE void each(const What& what) const {
    for (int64_t h = h0; h < h1; ++h)
      for (int64_t w = w0; w < w1; ++w)
        for (int64_t l = 0; l < n; ++l) what(l, x[(h * W + w) * L + l], place(h, w));
  }
};

void check_draw(const char* op, const PoolShape& shape, const DropoutShape& draw) {
  require(draw.N == shape.N && draw.lanes == shape.lanes &&
              draw.features == shape.C * shape.P * shape.Q,
          op, ": draw must be of the windows, got ", draw.N, "x", draw.features, " features in ",
          draw.lanes, " lanes and ", shape.N, "x", shape.C, "x", shape.P, "x", shape.Q, " in ",
          shape.lanes, " lanes");
}

// Calls what(window, channel of all, pixel of y, first lane) for all of them.
template <class What>
void every_window(const PoolShape& shape, const void* x, const What& what) {
  cpu::in_parallel(shape.N / shape.lanes * shape.C, [&](int64_t plane) {
    const float* const image =
        static_cast<const float*>(x) + plane * shape.H * shape.W * shape.lanes;
    cpu::vectorised([&]() CONVNET_INLINE {
      for (int64_t p = 0; p < shape.P; ++p)
        for (int64_t q = 0; q < shape.Q; ++q)
          for (int64_t first = 0; first < shape.lanes; first += kLanesOfTask) {
            const Window window(shape, image, p, q, first);
            what(window, plane, p * shape.Q + q, first);
          }
    });
  });
}

}  // namespace

void rand_pool_forward(const PoolShape& shape,
                       const DropoutShape& draw,
                       Precision precision,
                       const void* x,
                       void* y,
                       uint8_t* argmax,
                       const Control* control,
                       Stream) {
  const char* op = "rand_pool_forward";
  cpu::check(op, precision, shape);
  cpu::check(op, precision, draw);
  check_draw(op, shape, draw);
  const uint32_t step = control->step;
  every_window(
      shape, x,
      [&](const Window& window, int64_t plane, int64_t pixel, int64_t first) CONVNET_INLINE {
        float best[kLanesOfTask], reached[kLanesOfTask], wanted[kLanesOfTask];
        int32_t position[kLanesOfTask];
        const int64_t pixels = shape.P * shape.Q, n = window.n,
                      image = control->first + plane / shape.C * shape.lanes + first,
                      feature = plane % shape.C * pixels + pixel;
        for (int64_t l = 0; l < n; ++l) {
          const int64_t element = (image + l) * draw.features_total + draw.feature_offset + feature;
          const uint32_t word = cpu::first_word(static_cast<uint32_t>(element), step, draw.layer,
                                                draw.seed, kPooling);
          wanted[l] =
              static_cast<float>(static_cast<int32_t>(word >> 8) + 1) * 0x1p-24f * window.sum[l];
          best[l] = window.best[l], position[l] = window.position[l];
          // what is drawn already is not reached again
          reached[l] = window.best[l] > 0.0f ? 0.0f : std::numeric_limits<float>::quiet_NaN();
        }
        window.each([&](int64_t l, float v, int32_t at) CONVNET_INLINE {
          reached[l] += v > 0.0f ? v : 0.0f;
          const bool taken = (v > 0.0f) & (reached[l] >= wanted[l]);
          best[l] = taken ? v : best[l];
          position[l] = taken ? at : position[l];
          reached[l] = taken ? std::numeric_limits<float>::quiet_NaN() : reached[l];
        });
        const int64_t at = (plane * pixels + pixel) * shape.lanes + first;
        for (int64_t l = 0; l < n; ++l) static_cast<float*>(y)[at + l] = best[l];
        if (argmax)
          for (int64_t l = 0; l < n; ++l) argmax[at + l] = static_cast<uint8_t>(position[l]);
      });
}

void rand_pool_mean(const PoolShape& shape, Precision precision, const void* x, void* y, Stream) {
  cpu::check("rand_pool_mean", precision, shape);
  every_window(shape, x,
               [&](const Window& window, int64_t plane, int64_t pixel, int64_t first)
                   CONVNET_INLINE {
                     float mean[kLanesOfTask];
                     for (int64_t l = 0; l < window.n; ++l) mean[l] = 0.0f;
                     window.each([&](int64_t l, float v, int32_t) CONVNET_INLINE {
                       const float weight = v > 0.0f ? v : 0.0f;
                       mean[l] += weight * (weight / window.sum[l]);
                     });
                     float* const to = static_cast<float*>(y) +
                                       (plane * shape.P * shape.Q + pixel) * shape.lanes + first;
                     for (int64_t l = 0; l < window.n; ++l)
                       to[l] = window.best[l] > 0.0f ? mean[l] : window.best[l];
                   });
}

}  // namespace convnet
