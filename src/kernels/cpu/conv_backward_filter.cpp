// By Winograd, directly, or as the unfolded input times dy, summed over the tiles: a task sums some of them, and the partial
// sums are added in order.
#include "../conv_backward_filter.hpp"

#include <algorithm>

#include "checks.hpp"
#include "direct.hpp"
#include "sums.hpp"
#include "unfold.hpp"
#include "winograd.hpp"
#include "work.hpp"

namespace convnet {

namespace {

void bias_gradient(const ConvShape& shape, const float* dy, float* dbias) {
  const int64_t plane = shape.P * shape.Q * shape.lanes;
  if (dbias)
    cpu::in_parallel(shape.K, [&](int64_t k) {
      cpu::vectorised([&]() CONVNET_INLINE {
        dbias[k] = 0.0f;
        for (int64_t block = 0; block < shape.N / shape.lanes; ++block)
          dbias[k] += cpu::sum_of(dy + (block * shape.K + k) * plane, plane);
      });
    });
}

}  // namespace

int64_t conv_backward_filter_workspace(const ConvShape& shape, Precision precision) {
  cpu::check("conv_backward_filter_workspace", precision, shape);
  return 0;
}

void conv_backward_filter(const ConvShape& shape,
                          Precision precision,
                          const void* dy,
                          const void* x,
                          float* dweight,
                          float* dbias,
                          float*,
                          Stream) {
  cpu::check("conv_backward_filter", precision, shape);
  const int64_t g = shape.groups, C = shape.C / g, K = shape.K / g, L = shape.lanes,
                taps = C * shape.R * shape.S;
  const int64_t plane = shape.P * shape.Q * L, in = C * shape.H * shape.W * L, blocks = shape.N / L;
  if (cpu::takes_winograd_gradient(shape)) {
    cpu::winograd_gradient(shape, static_cast<const float*>(x), static_cast<const float*>(dy),
                           dweight);
    bias_gradient(shape, static_cast<const float*>(dy), dbias);
    return;
  }
  if (cpu::takes_direct_gradient(shape)) {
    constexpr int64_t kChannels = 4;  // rows of dy in the cache serve all of them
    std::vector<int64_t> tiles;
    for (int64_t k = 0; k < K; k += cpu::gradient_filters(shape, k, K)) tiles.push_back(k);
    const int64_t many = static_cast<int64_t>(tiles.size()),
                  pieces = (C + kChannels - 1) / kChannels;
    cpu::in_parallel(g * many * pieces, [&](int64_t index) {
      const int64_t piece = index % pieces, tile = index / pieces % many,
                    group = index / pieces / many;
      const int64_t c0 = piece * kChannels, c1 = std::min(c0 + kChannels, C);
      cpu::direct_gradient(
          {shape, K}, static_cast<const float*>(x) + group * in,
          static_cast<const float*>(dy) + group * K * plane, tiles[static_cast<std::size_t>(tile)],
          c0, c1, cpu::scratch(cpu::Scratch::sums, cpu::gradient_sums(shape, kChannels)),
          cpu::scratch(cpu::Scratch::pixels, cpu::gradient_pixels(shape, kChannels)),
          dweight + group * taps * K);
    });
    bias_gradient(shape, static_cast<const float*>(dy), dbias);
    return;
  }
  const std::vector<cpu::Tile> tiles = cpu::forward_tiles(shape, cpu::tile_bytes(), cpu::kTasks);
  const int64_t per_block = static_cast<int64_t>(tiles.size()), cuts = blocks * per_block;
  const int64_t parts = std::min(cuts, (cpu::kTasks + g - 1) / g);
  float* const sums = cpu::scratch(cpu::Scratch::sums, parts * g * taps * K);
  float* const bias_sums = cpu::scratch(cpu::Scratch::bias_sums, parts * g * K);

  cpu::in_parallel(g * parts, [&](int64_t index) {
    const int64_t group = index / parts, part = index % parts;
    float* const sum = sums + (part * g + group) * taps * K;
    float* const bias_sum = bias_sums + (part * g + group) * K;
    const int64_t begin = part * cuts / parts, end = (part + 1) * cuts / parts;
    for (int64_t cut = begin; cut < end; ++cut) {
      const cpu::Tile tile = tiles[static_cast<std::size_t>(cut % per_block)];
      const int64_t block = cut / per_block, n = tile.pixels() * L;
      const float* const gradient = static_cast<const float*>(dy) +
                                    (block * g + group) * K * plane +
                                    (tile.p0 * shape.Q + tile.q0) * L;
      float* const columns = cpu::scratch(cpu::Scratch::columns, taps * n);
      cpu::vectorised([&]() CONVNET_INLINE {
        cpu::unfold(shape, static_cast<const float*>(x) + (block * g + group) * in, tile, 0, C,
                    columns);
        for (int64_t k = 0; k < K; ++k) {
          const float value = cpu::sum_of(gradient + k * plane, n);
          bias_sum[k] = cut == begin ? value : bias_sum[k] + value;
        }
      });
      cpu::product(taps, K, n, {columns, n}, {gradient, plane, true}, sum, K, cut > begin);
    }
  });
  cpu::in_pieces(g * taps * K, cpu::kPiece, [&](int64_t first, int64_t last) {
    cpu::vectorised([&]() CONVNET_INLINE {
      cpu::sum_in_order(sums, parts, g * taps * K, first, last, dweight);
    });
  });
  if (dbias) cpu::sum_in_order(bias_sums, parts, g * K, 0, g * K, dbias);
}

}  // namespace convnet
