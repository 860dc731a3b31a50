// The second half of the ingest kernels: a strip of 32 pixels of one output row, red, green and blue
// as bytes in shared memory for up to 64 images, becomes network input. The kernel says where the
// bytes come from:
//
//   const StripPlace place = strip_place(shape);
//   load_noise(shared, place, noise);
//   ... for every existing lane < place.existing and pixel < place.pixels: the bytes into
//       shared.strip[3 * pixel + channel][lane]; zero for lanes that do not exist
//   __syncthreads();
//   write_strip(shape, shared, place, mean, y);
#pragma once
#include <algorithm>

#include "../arch/arch.cuh"
#include "quads.cuh"

namespace convnet {

constexpr int kStripThreads = 256;
constexpr int kStripLanes = 64;   // images per thread block
constexpr int kStripPixels = 32;  // of an output row
constexpr int kStripValues = 3 * kStripPixels;

// Rows of the strip are 4 bytes longer than the lanes, so that a warp that writes 32 values of one
// image, and one that reads 4 lanes per thread, both touch all banks.
struct Strip {
  float noise[3][kStripLanes];
  uint8_t strip[kStripValues][kStripLanes + 4];  // [pixel][channel] x lane
};

struct StripPlace {
  int64_t block, n0;  // of images; the first image of this thread block
  int lane0, lanes;   // of the block of images
  int existing;       // of these lanes
  int i, j0, pixels;  // output row, first column, columns
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
  place.block = static_cast<int>(blockIdx.x) / parts;
  place.lane0 = static_cast<int>(blockIdx.x) % parts * kStripLanes;
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

__device__ __forceinline__ void load_noise(Strip& shared,
                                           const StripPlace& place,
                                           const float* noise) {
  for (int k = static_cast<int>(threadIdx.x); k < 3 * kStripLanes; k += kStripThreads) {
    const int c = k / kStripLanes, lane = k % kStripLanes;
    shared.noise[c][lane] = lane < place.existing ? noise[(place.n0 + lane) * 3 + c] : 0.0f;
  }
}

// y = (byte - mean + noise) * scale, each operation rounded on its own, four lanes per thread.
template <class T>
__device__ __forceinline__ void write_strip(const IngestShape& shape,
                                            const Strip& shared,
                                            const StripPlace& place,
                                            const float* mean,
                                            T* __restrict__ y) {
  const int crop = static_cast<int>(shape.crop), L = static_cast<int>(shape.lanes);
  const int s = static_cast<int>(shape.fold), folded = crop / s, i = place.i;
  const int values = 3 * place.pixels, quads = place.lanes / 4;
  for (int k = static_cast<int>(threadIdx.x); k < values * quads; k += kStripThreads) {
    const int value = k / quads, lane = (k - value * quads) * 4;
    const int c = value / place.pixels, j = value - c * place.pixels;
    const float m = mean[(int64_t{c} * crop + i) * crop + place.j0 + j];
    // an index known at run time only would put the shape into local memory
    const float factor = c == 0 ? shape.scale[0] : c == 1 ? shape.scale[1] : shape.scale[2];
    const int column = (place.j0 + j) / s,
              channel = (c * s + i % s) * s + (place.j0 + j - column * s);
    const int64_t pixel = (int64_t{channel} * folded + i / s) * folded + column;
    const uint32_t bytes = load4_bytes(&shared.strip[3 * j + c][lane]);
    const float4 offset = load4(&shared.noise[c][lane]);
    const float added[4] = {offset.x, offset.y, offset.z, offset.w};
    float result[4];
#pragma unroll
    for (int l = 0; l < 4; ++l)
      result[l] = lane + l < place.existing
                      ? (static_cast<float>(bytes >> (8 * l) & 0xffu) - m + added[l]) * factor
                      : 0.0f;
    store4(y + (place.block * 3 * crop * crop + pixel) * L + place.lane0 + lane,
           float4{result[0], result[1], result[2], result[3]});
  }
}

}  // namespace convnet
