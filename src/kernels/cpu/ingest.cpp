// Stored images to network input: crop, flip, mean, colour noise, scale and layout, some rows of all images of a block at a
// time.
#include "../ingest.hpp"

#include "../ingest_planar.hpp"
#include "checks.hpp"
#include "level.hpp"
#include "work.hpp"

namespace convnet {
namespace {

constexpr int64_t kLanes = 16;  // images whose rows are laid side by side at a time

// row(image, i, pixels): row i of the stored image as uint8 [W][3].
template <class Row>
void ingest_rows(const IngestShape& shape,
                 Precision precision,
                 const int32_t* windows,
                 const float* noise,
                 const float* mean,
                 void* y,
                 const Row& row) {
  cpu::check("ingest", precision, shape);
  const int64_t crop = shape.crop, L = shape.lanes, blocks = shape.N / L;
  cpu::in_parallel(blocks * crop, [&](int64_t task) {
    const int64_t block = task / crop, i = task % crop, plane = crop * crop * L;
    float* const out = static_cast<float*>(y) + block * 3 * plane + i * crop * L;
    // [lane][channel][column]: read along the columns, written along the lanes
    float* const part = cpu::scratch(cpu::Scratch::columns, kLanes * 3 * crop);
    uint8_t* const stored = reinterpret_cast<uint8_t*>(cpu::scratch(cpu::Scratch::pixels, shape.W));
    for (int64_t first = 0; first < L; first += kLanes) {
      const int64_t lanes = L - first < kLanes ? L - first : kLanes;
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t image = block * L + first + lane;
        float* const values = part + lane * 3 * crop;
        if (image >= shape.valid) {
          for (int64_t k = 0; k < 3 * crop; ++k) values[k] = 0.0f;
          continue;
        }
        const int32_t* const window = windows + 3 * image;
        const uint8_t* pixels = row(image, window[0] + i, stored) + 3 * window[1];
        int64_t step = 3;
        if (window[2]) pixels += 3 * (crop - 1), step = -3;
        cpu::vectorised([&]() CONVNET_INLINE {
          for (int64_t c = 0; c < 3; ++c) {
            const float* const means = mean + (c * crop + i) * crop;
            const float colour = noise[3 * image + c], factor = shape.scale[c];
            for (int64_t j = 0; j < crop; ++j)
              values[c * crop + j] =
                  ((static_cast<float>(pixels[j * step + c]) - means[j]) + colour) * factor;
          }
        });
      }
      cpu::vectorised([&]() CONVNET_INLINE {
        for (int64_t c = 0; c < 3; ++c)
          for (int64_t j = 0; j < crop; ++j)
            for (int64_t lane = 0; lane < lanes; ++lane)
              out[c * plane + j * L + first + lane] = part[(lane * 3 + c) * crop + j];
      });
    }
  });
}

}  // namespace

void ingest(const IngestShape& shape,
            Precision precision,
            const uint8_t* images,
            const int32_t* windows,
            const float* noise,
            const float* mean,
            void* y,
            Stream) {
  ingest_rows(shape, precision, windows, noise, mean, y, [&](int64_t image, int64_t i, uint8_t*) {
    return images + (image * shape.H + i) * shape.W * 3;
  });
}

void ingest_planar(const IngestShape& shape,
                   Precision precision,
                   const uint8_t* luma,
                   const uint8_t* cb,
                   const uint8_t* cr,
                   const int32_t* index,
                   const int32_t* windows,
                   const float* noise,
                   const float* mean,
                   void* y,
                   Stream) {
  const int64_t half_rows = (shape.H + 1) / 2, half_columns = (shape.W + 1) / 2;
  ingest_rows(shape, precision, windows, noise, mean, y,
              [&](int64_t image, int64_t i, uint8_t* pixels) {
                const int64_t at = index[image];
                const uint8_t* const light = luma + (at * shape.H + i) * shape.W;
                const uint8_t* const blue = cb + (at * half_rows + i / 2) * half_columns;
                const uint8_t* const red = cr + (at * half_rows + i / 2) * half_columns;
                const auto cut = [](int value) {
                  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
                };
                for (int64_t j = 0; j < shape.W; ++j) {
                  const int b = blue[j / 2] - 128, r = red[j / 2] - 128;
                  pixels[3 * j] = cut(light[j] + ((91881 * r + 32768) >> 16));
                  pixels[3 * j + 1] = cut(light[j] + ((-22554 * b - 46802 * r + 32768) >> 16));
                  pixels[3 * j + 2] = cut(light[j] + ((116130 * b + 32768) >> 16));
                }
                return static_cast<const uint8_t*>(pixels);
              });
}

}  // namespace convnet
