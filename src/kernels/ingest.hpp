// From stored images to the network's input: crop, flip, mean, colour noise, scale and layout in one pass.
#pragma once
#include "shapes.hpp"

namespace convnet {

// images uint8 [valid][H][W][3]; windows int32 [valid][3] = top, left, flip (0/1), the window inside the image;
// noise float32 [valid][3], added per channel; mean float32 [3][crop][crop] -> y [N/L][3*s*s][crop/s][crop/s][L], s = fold:
//   y(n, c*s*s + i%s*s + j%s, i/s, j/s) = (image(n, top + i, left + (flip ? crop - 1 - j : j), c) - mean(c, i, j) + noise(n, c)) * scale(c)
// Images from `valid` on are written as zero.
void ingest(const IngestShape& shape,
            Precision precision,
            const uint8_t* images,
            const int32_t* windows,
            const float* noise,
            const float* mean,
            void* y,
            Stream stream);

}  // namespace convnet
