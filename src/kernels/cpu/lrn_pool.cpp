// Normalisation and the max-pooling behind it: what lies between the two stays in the cache.
#include "../lrn_pool_backward.hpp"
#include "../lrn_pool_forward.hpp"
#include "checks.hpp"
#include "normalise.hpp"
#include "windows.hpp"
#include "work.hpp"

namespace convnet {
namespace {

constexpr int64_t kBand = 1 << 15;  // floats of a channel that are normalised and then pooled

int64_t at_least_one(int64_t number) { return number < 1 ? 1 : number; }

}  // namespace

// A task takes some pooled rows of some channels, a channel at a time.
void lrn_pool_forward(const LrnShape& lrn,
                      const PoolShape& pool,
                      Precision precision,
                      const void* x,
                      void* p,
                      uint8_t* argmax,
                      Stream) {
  cpu::check("lrn_pool_forward", precision, lrn, pool);
  const int64_t row = pool.W * pool.lanes, step = pool.H * row, out = pool.P * pool.Q * pool.lanes;
  const int64_t channels = lrn.C / lrn.groups,
                parts = (channels + cpu::kChannels - 1) / cpu::kChannels;
  const int64_t rows = at_least_one((kBand / row - pool.size) / pool.stride + 1);
  const int64_t bands = (pool.P + rows - 1) / rows;
  cpu::in_parallel(lrn.N / lrn.lanes * lrn.groups * parts * bands, [&](int64_t index) {
    const int64_t band = index % bands, part = index / bands % parts, group = index / bands / parts;
    const int64_t p0 = band * rows, p1 = p0 + rows < pool.P ? p0 + rows : pool.P;
    const int64_t top = p0 * pool.stride - pool.pad_top,
                  end = (p1 - 1) * pool.stride - pool.pad_top + pool.size;
    const int64_t h0 = top > 0 ? top : 0, n = ((end < pool.H ? end : pool.H) - h0) * row;
    const cpu::Channels at{
        channels, step, part * cpu::kChannels,
        (part + 1) * cpu::kChannels < channels ? (part + 1) * cpu::kChannels : channels};
    float* const y = cpu::scratch(cpu::Scratch::normalised, n);
    float* const memory = cpu::scratch(cpu::Scratch::ring, 2 * cpu::kRun);
    int32_t* const places = cpu::integers(cpu::places_needed(pool));
    cpu::vectorised([&]() CONVNET_INLINE {
      const float* const from = static_cast<const float*>(x) + group * channels * step + h0 * row;
      for (int64_t c = at.begin; c < at.end; ++c) {
        for (int64_t first = 0; first < n; first += cpu::kRun)
          cpu::normalise(lrn, at, from + first, c, n - first < cpu::kRun ? n - first : cpu::kRun,
                         y + first, memory);
        const int64_t plane = (group * channels + c) * out;
        cpu::maxima(pool, y, h0, p0, p1, static_cast<float*>(p) + plane,
                    argmax ? argmax + plane : nullptr, places);
      }
    });
  });
}

// A task takes some rows of some channels.
void lrn_pool_backward(const LrnShape& lrn,
                       const PoolShape& pool,
                       Precision precision,
                       const void* dp,
                       const uint8_t* argmax,
                       const void* x,
                       void* dx,
                       bool relu,
                       Stream) {
  cpu::check("lrn_pool_backward", precision, lrn, pool);
  const int64_t row = pool.W * pool.lanes, step = pool.H * row, out = pool.P * pool.Q * pool.lanes;
  const int64_t channels = lrn.C / lrn.groups,
                parts = (channels + cpu::kChannels - 1) / cpu::kChannels;
  const int64_t rows = at_least_one(cpu::kRun / row), bands = (pool.H + rows - 1) / rows;
  cpu::in_parallel(lrn.N / lrn.lanes * lrn.groups * parts * bands, [&](int64_t index) {
    const int64_t band = index % bands, part = index / bands % parts, group = index / bands / parts;
    const int64_t h0 = band * rows, h1 = h0 + rows < pool.H ? h0 + rows : pool.H,
                  n = (h1 - h0) * row;
    const cpu::Channels at{
        channels, step, part * cpu::kChannels,
        (part + 1) * cpu::kChannels < channels ? (part + 1) * cpu::kChannels : channels};
    float* const memory = cpu::scratch(cpu::Scratch::ring, cpu::gradient_memory(lrn, n));
    cpu::vectorised([&]() CONVNET_INLINE {
      const int64_t first = group * channels * step + h0 * row;
      const auto slope = [&](int64_t f, float* to) CONVNET_INLINE {
        const int64_t plane = (group * channels + f) * out;
        cpu::gather(pool, static_cast<const float*>(dp) + plane, argmax + plane, nullptr, h0, h1,
                    to);
      };
      cpu::lrn_gradient(lrn, at, static_cast<const float*>(x) + first, n, slope,
                        static_cast<float*>(dx) + first, relu, memory);
    });
  });
}

}  // namespace convnet
