// A product for every pixel and tap, which reads its operands where they lie: a row of each channel, or filter, under the tap.
#include "../local.hpp"

#include <algorithm>

#include "checks.hpp"
#include "image_sums.hpp"
#include "work.hpp"

namespace convnet {
namespace {

void check(const char* op, Precision precision, const LocalShape& s) {
  cpu::check(op, precision, static_cast<const ConvShape&>(s));
}

// Extents of a group in values: of an image block, and of the weights at a pixel.
struct Group {
  int64_t C, K, L, taps;
  int64_t in, out;  // of a channel, of a filter

  explicit Group(const LocalShape& s)
      : C(s.C / s.groups),
        K(s.K / s.groups),
        L(s.lanes),
        taps(s.R * s.S),
        in(s.H * s.W * s.lanes),
        out(s.P * s.Q * s.lanes) {}

  // A tap's weights, in rows of channels.
  template <class Float>
  Float* weights(
      const LocalShape& s, Float* weight, int64_t pixel, int64_t group, int64_t tap) const {
    return weight + ((pixel * s.groups + group) * C * taps + tap) * K;
  }
};

// Calls each(tap, place in the image) for the taps at (p, q) inside it.
template <class Each>
void taps_inside(const LocalShape& s, int64_t p, int64_t q, const Each& each) {
  for (int64_t r = 0; r < s.R; ++r)
    for (int64_t t = 0; t < s.S; ++t) {
      const int64_t h = p * s.stride - s.pad_top + r, w = q * s.stride - s.pad_left + t;
      if (h >= 0 && h < s.H && w >= 0 && w < s.W) each(r * s.S + t, h * s.W + w);
    }
}

}  // namespace

void local_forward(const LocalShape& shape,
                   Precision precision,
                   const void* x,
                   const void* weight,
                   const float* bias,
                   void* y,
                   bool relu,
                   Stream) {
  check("local_forward", precision, shape);
  const Group of(shape);
  const int64_t g = shape.groups, L = of.L, pixels = shape.P * shape.Q, blocks = shape.N / L;
  cpu::in_parallel(pixels * g * blocks, [&](int64_t index) {
    const int64_t part = index % (g * blocks), group = part % g, pixel = index / (g * blocks);
    const float* const image = static_cast<const float*>(x) + part * of.C * of.in;
    float* const outputs = static_cast<float*>(y) + part * of.K * of.out + pixel * L;
    bool some = false;
    taps_inside(shape, pixel / shape.Q, pixel % shape.Q, [&](int64_t tap, int64_t place) {
      const float* const filters =
          of.weights(shape, static_cast<const float*>(weight), pixel, group, tap);
      cpu::product(of.K, L, of.C, {filters, of.taps * of.K, true}, {image + place * L, of.in},
                   outputs, of.out, some);
      some = true;
    });
    cpu::vectorised([&]() CONVNET_INLINE {
      for (int64_t k = 0; k < of.K; ++k) {
        float* const row = outputs + k * of.out;
        const float b = bias ? bias[(group * of.K + k) * pixels + pixel] : 0.0f;
        for (int64_t l = 0; l < L; ++l) {
          const float sum = some ? row[l] : 0.0f, value = bias ? sum + b : sum;
          row[l] = relu && value <= 0.0f ? 0.0f : value;
        }
      }
    });
  });
}

void local_backward_data(const LocalShape& shape,
                         Precision precision,
                         const void* dy,
                         const void* weight,
                         void* dx,
                         const void* mask,
                         Stream) {
  check("local_backward_data", precision, shape);
  const Group of(shape);
  const int64_t g = shape.groups, L = of.L, pixels = shape.H * shape.W, blocks = shape.N / L;
  const int64_t stride = shape.stride;
  cpu::in_parallel(pixels * g * blocks, [&](int64_t index) {
    const int64_t part = index % (g * blocks), group = part % g, pixel = index / (g * blocks);
    // counted from the first pixel of padding
    const int64_t h = pixel / shape.W + shape.pad_top, w = pixel % shape.W + shape.pad_left;
    const int64_t at = part * of.C * of.in + pixel * L;
    float* const image = static_cast<float*>(dx) + at;
    bool some = false;
    const auto first = [&](int64_t place, int64_t filter) {
      return place < filter ? 0 : (place - filter) / stride + 1;
    };
    for (int64_t p = first(h, shape.R); p < shape.P && p * stride <= h; ++p)
      for (int64_t q = first(w, shape.S); q < shape.Q && q * stride <= w; ++q) {
        const int64_t window = p * shape.Q + q, tap = (h - p * stride) * shape.S + (w - q * stride);
        cpu::product(of.C, L, of.K,
                     {of.weights(shape, static_cast<const float*>(weight), window, group, tap),
                      of.taps * of.K},
                     {static_cast<const float*>(dy) + part * of.K * of.out + window * L, of.out},
                     image, of.in, some);
        some = true;
      }
    cpu::vectorised([&]() CONVNET_INLINE {
      if (some && !mask) return;
      for (int64_t c = 0; c < of.C; ++c) {
        float* const row = image + c * of.in;
        const float* const output = mask ? static_cast<const float*>(mask) + at + c * of.in : row;
        for (int64_t l = 0; l < L; ++l) row[l] = some && output[l] > 0.0f ? row[l] : 0.0f;
      }
    });
  });
}

void local_backward_filter(const LocalShape& shape,
                           Precision precision,
                           const void* dy,
                           const void* x,
                           float* dweight,
                           float* dbias,
                           Stream) {
  check("local_backward_filter", precision, shape);
  const Group of(shape);
  const int64_t g = shape.groups, L = of.L, pixels = shape.P * shape.Q, blocks = shape.N / L;
  cpu::in_parallel(pixels * g, [&](int64_t index) {
    const int64_t group = index % g, pixel = index / g;
    float* const gradient = of.weights(shape, dweight, pixel, group, 0);
    std::fill_n(gradient, of.C * of.taps * of.K, 0.0f);
    taps_inside(shape, pixel / shape.Q, pixel % shape.Q, [&](int64_t tap, int64_t place) {
      for (int64_t part = group; part < blocks * g; part += g)
        cpu::product(
            of.C, of.K, L, {static_cast<const float*>(x) + part * of.C * of.in + place * L, of.in},
            {static_cast<const float*>(dy) + part * of.K * of.out + pixel * L, of.out, true},
            gradient + tap * of.K, of.taps * of.K, part > group);
    });
  });
  if (dbias) cpu::sum_images(shape, static_cast<const float*>(dy), dbias);
}

std::string local_forward_variant(const LocalShape&, Precision precision) {
  cpu::fp32_only(precision);
  return "BLAS";
}
std::string local_backward_data_variant(const LocalShape& shape, Precision precision) {
  return local_forward_variant(shape, precision);
}
std::string local_backward_filter_variant(const LocalShape& shape, Precision precision) {
  return local_forward_variant(shape, precision);
}
std::vector<VariantRow> local_variants() { return {}; }

}  // namespace convnet
