// At a stride of 1 it is the convolution of dy with the filters turned around: by Winograd, or directly. Else the filters times
// dy give what every output sends to its pixels; a second step adds that up, tap by tap. Unfolding dy instead would move K/C
// as much memory, and with a stride multiply zeros.
#include "../conv_backward_data.hpp"

#include <algorithm>

#include "checks.hpp"
#include "direct.hpp"
#include "unfold.hpp"
#include "winograd.hpp"
#include "work.hpp"

namespace convnet {

void conv_backward_data(const ConvShape& shape,
                        Precision precision,
                        const void* dy,
                        const void* weight,
                        void* dx,
                        const void* mask,
                        Stream) {
  cpu::check("conv_backward_data", precision, shape);
  const int64_t g = shape.groups, C = shape.C / g, K = shape.K / g, L = shape.lanes,
                taps = shape.R * shape.S;
  const int64_t stride = shape.stride, plane = shape.P * shape.Q * L, in = shape.H * shape.W * L;
  const ConvShape turned = cpu::turned(shape);
  const float* const filters = static_cast<const float*>(weight);
  if (cpu::takes_winograd(turned)) {
    cpu::convolve_winograd(turned, static_cast<const float*>(dy),
                           {filters + (taps - 1) * K, C * taps * K, 1, -K, taps * K}, nullptr,
                           false, static_cast<float*>(dx), static_cast<const float*>(mask));
    return;
  }
  if (cpu::takes_direct_data(shape)) {
    cpu::convolve(
        turned, static_cast<const float*>(dy),
        [&](int64_t group, int64_t tap, int64_t c) {
          const int64_t k = tap / taps, behind = taps - 1 - tap % taps;
          return filters[((group * C + c) * taps + behind) * K + k];
        },
        nullptr, false, static_cast<float*>(dx), static_cast<const float*>(mask));
    return;
  }
  const int64_t piece = std::max<int64_t>(1, C / cpu::kTasks), pieces = (C + piece - 1) / piece;

  cpu::in_parallel(shape.N / L * g * pieces, [&](int64_t index) {
    const int64_t part = index / pieces, group = part % g, c0 = index % pieces * piece;
    const int64_t channels = std::min(piece, C - c0), first = (part * C + c0) * in;
    const float* const matrix = static_cast<const float*>(weight) + (group * C + c0) * taps * K;
    float* const image = static_cast<float*>(dx) + first;
    std::fill_n(image, channels * in, 0.0f);
    // half of a forward tile: what was sent is read again at once
    const int64_t pixels = cpu::tile_bytes() / 2 / (channels * taps * L * 4);
    for (const cpu::Tile& tile : cpu::tiles(shape.P, shape.Q, pixels)) {
      const int64_t n = tile.pixels() * L, width = tile.q1 - tile.q0;
      float* const sent = cpu::scratch(cpu::Scratch::columns, channels * taps * n);
      const float* const gradient =
          static_cast<const float*>(dy) + part * K * plane + (tile.p0 * shape.Q + tile.q0) * L;
      cpu::product(channels * taps, n, K, {matrix, K}, {gradient, plane}, sent, n);
      cpu::vectorised([&]() CONVNET_INLINE {
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t r = 0; r < shape.R; ++r)
            for (int64_t s = 0; s < shape.S; ++s) {
              const cpu::Range there =
                  cpu::inside(s, stride, shape.pad_left, shape.W, tile.q0, tile.q1);
              const int64_t run = (there.last - there.first) * L;
              for (int64_t p = tile.p0; p < tile.p1; ++p) {
                const int64_t h = p * stride + r - shape.pad_top;
                if (h < 0 || h >= shape.H || run == 0) continue;
                const float* const from = sent + ((c * shape.R + r) * shape.S + s) * n +
                                          ((p - tile.p0) * width + there.first - tile.q0) * L;
                float* to =
                    image + c * in + (h * shape.W + there.first * stride + s - shape.pad_left) * L;
                if (stride == 1) {
                  for (int64_t i = 0; i < run; ++i) to[i] += from[i];
                } else {
                  for (int64_t i = 0; i < run; i += L, to += stride * L)
                    for (int64_t l = 0; l < L; ++l) to[l] += from[i + l];
                }
              }
            }
      });
    }
    if (mask)
      cpu::vectorised([&]() CONVNET_INLINE {
        const float* const output = static_cast<const float*>(mask) + first;
        for (int64_t i = 0; i < channels * in; ++i) image[i] = output[i] > 0.0f ? image[i] : 0.0f;
      });
  });
}

}  // namespace convnet
