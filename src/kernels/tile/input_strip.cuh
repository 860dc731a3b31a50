// What the ingest kernels share: a strip of 64 pixels of one output row, red, green and blue as bytes
// in shared memory for up to 64 images, becomes network input. The kernel says where the bytes come
// from:
//
//   const StripPlace place = strip_place(shape);
//   load_strip(shape, place, noise, mean, shared);
//   if (threadIdx.x < kStripLanes)
//     ... strip_window(shape, place, windows, lane): where its pixels lie, into shared memory
//   __syncthreads();
//   for_strip_quads(place, [&](int pixel, int lane) {
//     ... the colours of this pixel of four images, into shared.colours[channel][pixel][lane]
//   });
//   __syncthreads();
//   write_strip(shape, shared, place, y);
#pragma once
#include <algorithm>

#include "../arch/arch.cuh"
#include "quads.cuh"

namespace convnet {

constexpr int kStripThreads = 256;
constexpr int kStripLanes = 64;   // images per thread block
constexpr int kStripPixels = 64;  // of an output row
constexpr int kStripQuads = kStripLanes / 4;

// Rows of bytes are 4 longer than the lanes, so that a warp that writes four lanes of 32 pixels
// touches all banks.
struct Strip {
  float noise[kStripLanes * 3];
  float mean[3][kStripPixels];
  int64_t target[kStripPixels];  // of a pixel's red in y, counted from that of this image block
  uint8_t colours[3][kStripPixels][kStripLanes + 4];
};

struct StripPlace {
  int64_t block, n0;  // of images; the first image of this thread block
  int lane0, lanes;   // of the block of images
  int existing;       // of these lanes
  int i, j0, pixels;  // output row, first column, columns
};

// Where one image's pixels of a strip lie in the stored image.
struct StripWindow {
  int64_t n;              // the image of the batch
  int row, column, step;  // of the strip's first pixel; from one pixel to the next, 1 or -1
};

// The grid; throws where the shape cannot be.
inline Dim3 strip_grid(const char* op, const IngestShape& shape) {
  const int64_t parts =
      image_blocks(op, shape.N, shape.lanes) * ((shape.lanes + kStripLanes - 1) / kStripLanes);
  require(shape.valid >= 1 && shape.valid <= shape.N, op,
          ": valid must be 1 to N, got valid=", shape.valid, " N=", shape.N);
  require(shape.crop >= 1 && shape.crop <= std::min({shape.H, shape.W, int64_t{65535}}), op,
          ": crop must be at least 1 and fit the stored images, got crop=", shape.crop, " of ",
          shape.H, "x", shape.W);
  require(shape.fold >= 1 && shape.crop % shape.fold == 0, op,
          ": fold must divide crop, got fold=", shape.fold, " crop=", shape.crop);
  require(parts <= kMaxGrid, op, ": the batch is too large for one launch, got N=", shape.N);
  return Dim3(static_cast<unsigned>(parts), static_cast<unsigned>(shape.crop),
              static_cast<unsigned>((shape.crop + kStripPixels - 1) / kStripPixels));
}

__device__ __forceinline__ StripPlace strip_place(const IngestShape& shape) {
  const int crop = static_cast<int>(shape.crop), L = static_cast<int>(shape.lanes);
  const int parts = (L + kStripLanes - 1) / kStripLanes;  // of a block of images
  StripPlace place;
  // As a rule there is one part, and no division.
  place.block = parts == 1 ? static_cast<int>(blockIdx.x) : static_cast<int>(blockIdx.x) / parts;
  place.lane0 =
      (static_cast<int>(blockIdx.x) - static_cast<int>(place.block) * parts) * kStripLanes;
  place.lanes = min(L - place.lane0, kStripLanes);
  place.i = static_cast<int>(blockIdx.y);
  place.j0 = static_cast<int>(blockIdx.z) * kStripPixels;
  place.pixels = min(crop - place.j0, kStripPixels);
  place.n0 = place.block * L + place.lane0;
  place.existing = place.n0 + place.lanes <= shape.valid ? place.lanes
                   : place.n0 < shape.valid              ? static_cast<int>(shape.valid - place.n0)
                                                         : 0;
  return place;
}

// What the images and the pixels of the strip have for themselves.
__device__ __forceinline__ void load_strip(const IngestShape& shape,
                                           const StripPlace& place,
                                           const float* noise,
                                           const float* mean,
                                           Strip& shared) {
  static_assert(kStripThreads == 4 * kStripPixels && kStripThreads >= 3 * kStripLanes);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < 3 * kStripLanes)
    shared.noise[thread] = thread < 3 * place.existing ? noise[place.n0 * 3 + thread] : 0.0f;
  const int c = thread / kStripPixels, pixel = thread % kStripPixels, j = place.j0 + pixel;
  if (pixel >= place.pixels) return;
  if (c < 3) {
    shared.mean[c][pixel] = mean[(c * shape.crop + place.i) * shape.crop + j];
  } else {
    const int s = static_cast<int>(shape.fold), folded = static_cast<int>(shape.crop) / s;
    const int64_t channel = place.i % s * s + j % s;
    shared.target[pixel] = ((channel * folded + place.i / s) * folded + j / s) * shape.lanes;
  }
}

// Lanes that do not exist have the window of the first image: reading stays free of branches.
__device__ __forceinline__ StripWindow strip_window(const IngestShape& shape,
                                                    const StripPlace& place,
                                                    const int32_t* windows,
                                                    int lane) {
  const int64_t n = lane < place.existing ? place.n0 + lane : 0;
  const int32_t* window = windows + n * 3;
  const bool flip = window[2] != 0;
  const int j = flip ? static_cast<int>(shape.crop) - 1 - place.j0 : place.j0;
  return StripWindow{n, window[0] + place.i, window[1] + j, flip ? -1 : 1};
}

// f(pixel, first of four lanes), in such an order that a warp reads neighbouring pixels of an image.
template <class Function>
__device__ __forceinline__ void for_strip_quads(const StripPlace& place, Function f) {
  const int pixel = static_cast<int>(threadIdx.x) % kStripPixels;
  if (pixel >= place.pixels) return;
  for (int lane = static_cast<int>(threadIdx.x) / kStripPixels * 4; lane < place.lanes;
       lane += kStripThreads / kStripPixels * 4)
    f(pixel, lane);
}

// y = (colour - mean + noise) * scale, each operation rounded on its own. A thread keeps to four
// lanes, and takes the three colours of a pixel in a turn.
template <class T>
__device__ __forceinline__ void write_strip(const IngestShape& shape,
                                            const Strip& shared,
                                            const StripPlace& place,
                                            T* __restrict__ y) {
  const int lane = static_cast<int>(threadIdx.x) % kStripQuads * 4;
  if (lane >= place.lanes) return;
  const int existing = place.existing - lane;  // of the four
  const int64_t plane = shape.crop * shape.crop * shape.lanes;
  T* const image = y + place.block * 3 * plane + place.lane0 + lane;
  float noise[12];  // of the four, each in its three colours
#pragma unroll
  for (int k = 0; k < 12; k += 4) {
    const float4 quad = load4(&shared.noise[3 * lane + k]);
    noise[k] = quad.x, noise[k + 1] = quad.y, noise[k + 2] = quad.z, noise[k + 3] = quad.w;
  }
  for (int pixel = static_cast<int>(threadIdx.x) / kStripQuads; pixel < place.pixels;
       pixel += kStripThreads / kStripQuads) {
    T* target = image + shared.target[pixel];
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const uint32_t bytes = load4_bytes(&shared.colours[c][pixel][lane]);
      const float mean = shared.mean[c][pixel], scale = shape.scale[c];
      float result[4];
#pragma unroll
      for (int l = 0; l < 4; ++l) {
        const float value =
            (static_cast<float>(bytes >> (8 * l) & 0xffu) - mean + noise[3 * l + c]) * scale;
        result[l] = l < existing ? value : 0.0f;
      }
      store4(target, float4{result[0], result[1], result[2], result[3]});
      target += plane;
    }
  }
}

}  // namespace convnet
