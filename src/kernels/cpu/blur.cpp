// A gaussian blur of every map by itself: a strip at a time, a row at a time.
#include "../blur.hpp"

#include "checks.hpp"
#include "strips.hpp"

namespace convnet {
namespace {

using cpu::Strip;

// y = the sum of tap(j) times row(j) over the rows begin to end - 1.
template <class Row>
CONVNET_INLINE inline void weigh(
    const BlurTaps& taps, int64_t begin, int64_t end, const Row& row, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = 0.0f;
  for (int64_t j = begin; j < end; ++j) {
    const float* const from = row(j);
    const float tap = taps.tap[j];
    for (int64_t i = 0; i < n; ++i) y[i] += tap * from[i];
  }
}

// Rows blurred along themselves are kept as long as one below or above needs them.
CONVNET_INLINE inline void blurred(const BlurShape& shape,
                                   const BlurTaps& taps,
                                   const Strip& strip,
                                   const float* x,
                                   float* y,
                                   float* memory) {
  const int64_t size = shape.size, before = size / 2, row = strip.row();
  float* const padded = memory;
  float* const result = memory + (strip.W + size - 1) * strip.lanes;
  float* const kept = result + row;
  std::fill(padded, result, 0.0f);  // what lies beside the image stays 0
  for (int64_t h = 0, entered = 0; h < strip.H; ++h) {
    for (; entered < std::min(h + before + 1, strip.H); ++entered) {
      float* const own = padded + before * strip.lanes;
      strip.runs(entered, [&](int64_t at, int64_t from, int64_t count) CONVNET_INLINE {
        for (int64_t i = 0; i < count; ++i) own[at + i] = x[from + i];
      });
      weigh(
          taps, 0, size, [&](int64_t s) CONVNET_INLINE { return padded + s * strip.lanes; }, row,
          kept + entered % size * row);
    }
    const int64_t top = h - before;
    weigh(
        taps, std::max<int64_t>(-top, 0), std::min(size, strip.H - top),
        [&](int64_t r) CONVNET_INLINE { return kept + (top + r) % size * row; }, row, result);
    strip.runs(h, [&](int64_t at, int64_t to, int64_t count) CONVNET_INLINE {
      for (int64_t i = 0; i < count; ++i) y[to + i] = result[at + i];
    });
  }
}

}  // namespace

void blur(const BlurShape& shape, Precision precision, const void* x, void* y, Stream) {
  cpu::check("blur", precision, shape);
  const BlurTaps taps = blur_taps(shape);
  cpu::over_strips(shape, [&](const Strip& strip) {
    const int64_t floats =
        (strip.W + shape.size - 1) * strip.lanes + (shape.size + 1) * strip.row();
    float* const memory = cpu::scratch(cpu::Scratch::ring, floats);
    cpu::vectorised([&]() CONVNET_INLINE {
      blurred(shape, taps, strip, static_cast<const float*>(x), static_cast<float*>(y), memory);
    });
  });
}

}  // namespace convnet
