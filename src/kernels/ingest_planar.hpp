// From images stored on the device as luma and halved chroma to the network's input: as ingest, with the pixels' colours
// computed on the way.
#pragma once
#include "shapes.hpp"

namespace convnet {

// luma uint8 [count][H][W]; cb, cr uint8 [count][(H + 1) / 2][(W + 1) / 2], a value for 2x2 pixels; index int32 [valid]
// in 0 .. count - 1: the stored image that each image of the batch is; windows, noise, mean, y as in ingest.hpp.
//
// Pixel (a, b) has the chroma of (a / 2, b / 2), rounded down, and these colours, each cut to 0..255 (JFIF 1.02 in the
// fixed point of libjpeg; >> rounds towards minus infinity):
//   red   = luma + (91881 * (cr - 128) + 32768 >> 16)                           1.402
//   green = luma + (-22554 * (cb - 128) - 46802 * (cr - 128) + 32768 >> 16)     0.34414, 0.71414
//   blue  = luma + (116130 * (cb - 128) + 32768 >> 16)                          1.772
//
// These are whole numbers, hence y is what ingest makes of such images, to the bit. Beside the image that the planes
// were made of, a colour is at most 1 level off where the chroma is the same in all 2x2 pixels (three roundings of half
// a level at most, times up to 1.772); elsewhere every pixel has the mean chroma of its four, and its own luma.
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
                   Stream stream);

}  // namespace convnet
