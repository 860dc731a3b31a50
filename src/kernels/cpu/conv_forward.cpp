// By Winograd, directly, or as the product of the filters and the unfolded input, tile by tile; bias and ReLU follow in the cache.
#include "../conv_forward.hpp"

#include <algorithm>

#include "checks.hpp"
#include "direct.hpp"
#include "unfold.hpp"
#include "winograd.hpp"
#include "work.hpp"

namespace convnet {
namespace {

CONVNET_INLINE inline void add_bias(
    int64_t filters, int64_t n, const float* bias, bool relu, float* y, int64_t ld) {
  for (int64_t k = 0; k < filters; ++k) {
    float* const row = y + k * ld;
    const float b = bias ? bias[k] : 0.0f;
    if (relu)
      for (int64_t i = 0; i < n; ++i) row[i] = row[i] + b <= 0.0f ? 0.0f : row[i] + b;
    else
      for (int64_t i = 0; i < n; ++i) row[i] += b;
  }
}

// y += what `run` writes there, then ReLU where asked.
template <class Run>
void add_to(float* y, int64_t count, bool relu, const Run& run) {
  float* const old = cpu::scratch(cpu::Scratch::kept, count);
  cpu::in_pieces(count, cpu::kPiece,
                 [&](int64_t first, int64_t last) { std::copy(y + first, y + last, old + first); });
  run();
  cpu::in_pieces(count, cpu::kPiece, [&](int64_t first, int64_t last) {
    cpu::vectorised([&]() CONVNET_INLINE {
      for (int64_t i = first; i < last; ++i) {
        const float value = y[i] + old[i];
        y[i] = relu && value <= 0.0f ? 0.0f : value;
      }
    });
  });
}

}  // namespace

void conv_forward(const ConvShape& shape,
                  Precision precision,
                  const void* x,
                  const void* weight,
                  const float* bias,
                  void* y,
                  bool relu,
                  bool accumulate,
                  Stream stream) {
  cpu::check("conv_forward", precision, shape);
  if (accumulate) {
    add_to(static_cast<float*>(y), shape.N * shape.K * shape.P * shape.Q, relu,
           [&] { conv_forward(shape, precision, x, weight, bias, y, false, false, stream); });
    return;
  }
  const int64_t g = shape.groups, C = shape.C / g, K = shape.K / g, L = shape.lanes,
                taps = C * shape.R * shape.S;
  const int64_t in = C * shape.H * shape.W * L, plane = shape.P * shape.Q * L, blocks = shape.N / L;
  const auto image = [&](int64_t part) { return static_cast<const float*>(x) + part * in; };
  const auto finish = [&](int64_t group, int64_t k, int64_t filters, int64_t n, float* out) {
    if (bias || relu)
      cpu::vectorised([&]() CONVNET_INLINE {
        add_bias(filters, n, bias ? bias + group * K + k : nullptr, relu, out, plane);
      });
  };

  if (cpu::takes_winograd(shape)) {
    cpu::convolve_winograd(
        shape, static_cast<const float*>(x),
        {static_cast<const float*>(weight), taps * K, shape.R * shape.S * K, K, 1}, bias, relu,
        static_cast<float*>(y), nullptr);
    return;
  }

  if (cpu::takes_direct(shape)) {
    const float* const filters = static_cast<const float*>(weight);
    cpu::convolve(
        shape, static_cast<const float*>(x),
        [&](int64_t group, int64_t tap, int64_t k) {
          return filters[(group * taps + tap) * K + k];
        },
        bias, relu, static_cast<float*>(y), nullptr);
    return;
  }

  if (cpu::takes_flat(shape)) {
    cpu::convolve_flat(shape, static_cast<const float*>(x), static_cast<const float*>(weight), bias,
                       relu, static_cast<float*>(y));
    return;
  }

  const std::vector<cpu::Tile> cuts = cpu::forward_tiles(shape, cpu::tile_bytes(), cpu::kTasks);
  const int64_t count = static_cast<int64_t>(cuts.size());
  cpu::in_parallel(blocks * g * count, [&](int64_t index) {
    const cpu::Tile tile = cuts[static_cast<std::size_t>(index % count)];
    const int64_t part = index / count, group = part % g, n = tile.pixels() * L;
    float* const columns = cpu::scratch(cpu::Scratch::columns, taps * n);
    cpu::vectorised([&]() CONVNET_INLINE { cpu::unfold(shape, image(part), tile, 0, C, columns); });
    float* const out =
        static_cast<float*>(y) + part * K * plane + (tile.p0 * shape.Q + tile.q0) * L;
    cpu::product(K, n, taps, {static_cast<const float*>(weight) + group * taps * K, K, true},
                 {columns, n}, out, plane);
    finish(group, 0, K, n, out);
  });
}

}  // namespace convnet
