// Normalisation over a square of pixels of one map: a strip at a time, from the first row to the last.
#include "../spatial_norm.hpp"

#include "checks.hpp"
#include "normalise.hpp"
#include "strips.hpp"

namespace convnet {
namespace {

using cpu::Strip;
using cpu::WindowSums;

// u of a strip, [H][W][lanes] without gaps: x, or for cnorm x - the mean over its window, in memory of its own.
struct Centred {
  Strip place;
  const float* values;
};

int64_t centred_memory(const SpatialNormShape& shape, const Strip& strip) {
  return strip.H * strip.row() + WindowSums::memory(strip, shape.size);
}

CONVNET_INLINE inline Centred centred(const SpatialNormShape& shape,
                                      const Strip& strip,
                                      const float* x,
                                      float* memory) {
  const int64_t size = shape.size, before = size / 2, n = strip.lanes;
  WindowSums sums(strip, size, before, memory + strip.H * strip.row());
  for (int64_t h = 0; h < strip.H; ++h) {
    float* const u = memory + h * strip.row();
    sums.enter(h, [&](int64_t row, float* to) CONVNET_INLINE {
      strip.runs(row, [&](int64_t at, int64_t from, int64_t count) CONVNET_INLINE {
        for (int64_t i = 0; i < count; ++i) to[at + i] = x[from + i];
      });
    });
    sums.sum(h, u);
    const int64_t height = std::min(h - before + size, strip.H) - std::max<int64_t>(h - before, 0);
    for (int64_t w = 0; w < strip.W; ++w) {
      const int64_t width = std::min(w - before + size, strip.W) - std::max<int64_t>(w - before, 0);
      const auto pixels = static_cast<float>(height * width);
      const float* const own = x + strip.first + (h * strip.W + w) * strip.step;
      for (int64_t l = 0; l < n; ++l) u[w * n + l] = own[l] - u[w * n + l] / pixels;
    }
  }
  return {Strip{strip.H, strip.W, 0, n, n}, memory};
}

// d of row h: k + alpha * the sum of u^2.
CONVNET_INLINE inline void divisors(
    const SpatialNormShape& shape, const Centred& u, WindowSums& squares, int64_t h, float* d) {
  squares.enter(h, [&](int64_t row, float* to) CONVNET_INLINE {
    u.place.runs(row, [&](int64_t at, int64_t from, int64_t count) CONVNET_INLINE {
      for (int64_t i = 0; i < count; ++i) to[at + i] = u.values[from + i] * u.values[from + i];
    });
  });
  squares.sum(h, d);
  for (int64_t i = 0; i < u.place.row(); ++i) d[i] = shape.k + shape.alpha * d[i];
}

int64_t forward_memory(const SpatialNormShape& shape, const Strip& strip) {
  return 2 * strip.row() + WindowSums::memory(strip, shape.size);
}

CONVNET_INLINE inline void forward(const SpatialNormShape& shape,
                                   const Strip& strip,
                                   const Centred& u,
                                   const float* x,
                                   float* y,
                                   float* memory) {
  float* const d = memory;
  float* const power = memory + strip.row();
  WindowSums squares(strip, shape.size, shape.size / 2, memory + 2 * strip.row());
  for (int64_t h = 0; h < strip.H; ++h) {
    divisors(shape, u, squares, h, d);
    cpu::powers(shape.beta, strip.row(), d, power);
    strip.runs(h, [&](int64_t at, int64_t from, int64_t count) CONVNET_INLINE {
      for (int64_t i = 0; i < count; ++i) y[from + i] = x[from + i] / power[at + i];
    });
  }
}

int64_t backward_memory(const SpatialNormShape& shape, const Strip& strip) {
  return (3 + shape.size / 2 + 1) * strip.row() + 2 * WindowSums::memory(strip, shape.size);
}

// The terms t_o = dy_o x_o d_o^(-beta-1) of a row enter as soon as a window of dx reaches it; dy d^-beta, made with them, is
// kept until dx comes to its row.
CONVNET_INLINE inline void backward(const SpatialNormShape& shape,
                                    const Strip& strip,
                                    const Centred& u,
                                    const float* dy,
                                    const float* x,
                                    float* dx,
                                    float* memory) {
  const int64_t size = shape.size, before = size / 2, row = strip.row();
  float* const d = memory;
  float* const power = memory + row;
  float* const sum = memory + 2 * row;
  float* const direct = memory + 3 * row;  // dy d^-beta, a ring of `before` + 1 rows
  float* const behind = direct + (before + 1) * row;
  WindowSums squares(strip, size, before, behind);
  // The windows that hold p are those of the pixels [p + before - size + 1, p + before].
  WindowSums terms(strip, size, size - 1 - before, behind + WindowSums::memory(strip, size));
  const float factor = 2.0f * shape.alpha * shape.beta;
  for (int64_t h = 0; h < strip.H; ++h) {
    terms.enter(h, [&](int64_t o, float* to) CONVNET_INLINE {
      float* const straight = direct + o % (before + 1) * row;
      divisors(shape, u, squares, o, d);
      cpu::powers(shape.beta, row, d, power);
      strip.runs(o, [&](int64_t at, int64_t from, int64_t count) CONVNET_INLINE {
        for (int64_t i = 0; i < count; ++i) {
          const float scaled = dy[from + i] / power[at + i];
          straight[at + i] = scaled;
          to[at + i] = scaled * (x[from + i] / d[at + i]);
        }
      });
    });
    terms.sum(h, sum);
    const float* const straight = direct + h % (before + 1) * row;
    const int64_t own = u.place.first + h * strip.W * u.place.step;
    for (int64_t w = 0, i = 0; w < strip.W; ++w)
      for (int64_t l = 0; l < strip.lanes; ++l, ++i)
        dx[strip.first + (h * strip.W + w) * strip.step + l] =
            straight[i] - factor * (u.values[own + w * u.place.step + l] * sum[i]);
  }
}

}  // namespace

int64_t rnorm_workspace(const SpatialNormShape& shape, Precision precision) {
  cpu::check("rnorm_workspace", precision, shape);
  return 0;
}

int64_t cnorm_workspace(const SpatialNormShape& shape, Precision precision) {
  cpu::check("cnorm_workspace", precision, shape);
  return 0;
}

void rnorm_forward(
    const SpatialNormShape& shape, Precision precision, const void* x, void* y, Stream) {
  cpu::check("rnorm_forward", precision, shape);
  const auto* const from = static_cast<const float*>(x);
  cpu::over_strips(shape, [&](const Strip& strip) {
    float* const memory = cpu::scratch(cpu::Scratch::ring, forward_memory(shape, strip));
    cpu::vectorised([&]() CONVNET_INLINE {
      forward(shape, strip, {strip, from}, from, static_cast<float*>(y), memory);
    });
  });
}

void rnorm_backward(const SpatialNormShape& shape,
                    Precision precision,
                    const void* dy,
                    const void* x,
                    void* dx,
                    float*,
                    Stream) {
  cpu::check("rnorm_backward", precision, shape);
  const auto* const from = static_cast<const float*>(x);
  cpu::over_strips(shape, [&](const Strip& strip) {
    float* const memory = cpu::scratch(cpu::Scratch::ring, backward_memory(shape, strip));
    cpu::vectorised([&]() CONVNET_INLINE {
      backward(shape, strip, {strip, from}, static_cast<const float*>(dy), from,
               static_cast<float*>(dx), memory);
    });
  });
}

void cnorm_forward(
    const SpatialNormShape& shape, Precision precision, const void* x, void* y, float*, Stream) {
  cpu::check("cnorm_forward", precision, shape);
  const auto* const from = static_cast<const float*>(x);
  cpu::over_strips(shape, [&](const Strip& strip) {
    float* const own = cpu::scratch(cpu::Scratch::normalised, centred_memory(shape, strip));
    float* const memory = cpu::scratch(cpu::Scratch::ring, forward_memory(shape, strip));
    cpu::vectorised([&]() CONVNET_INLINE {
      forward(shape, strip, centred(shape, strip, from, own), from, static_cast<float*>(y), memory);
    });
  });
}

void cnorm_backward(const SpatialNormShape& shape,
                    Precision precision,
                    const void* dy,
                    const void* x,
                    void* dx,
                    float*,
                    Stream) {
  cpu::check("cnorm_backward", precision, shape);
  const auto* const from = static_cast<const float*>(x);
  cpu::over_strips(shape, [&](const Strip& strip) {
    float* const own = cpu::scratch(cpu::Scratch::normalised, centred_memory(shape, strip));
    float* const memory = cpu::scratch(cpu::Scratch::ring, backward_memory(shape, strip));
    cpu::vectorised([&]() CONVNET_INLINE {
      backward(shape, strip, centred(shape, strip, from, own), static_cast<const float*>(dy), from,
               static_cast<float*>(dx), memory);
    });
  });
}

}  // namespace convnet
