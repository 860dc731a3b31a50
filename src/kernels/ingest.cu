// From stored images to the network's input.
//
// What       y(n, c, i, j) = (image(n, top + i, left + (flip ? crop - 1 - j : j), c) - mean(c, i,
//            j) + noise(n, c)) * scale(c), each operation rounded on its own; zero for the images
//            from `valid` on. Where fold = s > 1 it is written at (i/s, j/s) of channel c*s*s +
//            i%s*s + j%s, so that a first layer of stride s becomes one of stride 1 with s*s times
//            as many channels (fold.cu).
// Tensors    images uint8 [valid][H][W][3], windows int32 [valid][3], noise float32 [valid][3],
//            mean float32 [3][crop][crop], y [N/L][3*s*s][crop/s][crop/s][L] by precision.
// Work       one block of 256 threads per up to 64 neighbouring lanes, output row, and strip of 32
//            pixels of it. Images are read along their rows, 96 bytes each, and written along the
//            lanes, four values per thread; in between the block turns the strip round in shared
//            memory.
// Shared     6528 bytes of pixels, [96 values][64 lanes], with rows 4 bytes longer, so that a warp
//            that writes 32 values of one image, and one that reads 4 lanes per thread, both touch
//            all banks; and 768 bytes of noise.
// Barriers   one, between reading and writing.
// Needs      lanes a multiple of 8, 1 <= valid <= N, crop at most H and W and 65535, fold a divisor
//            of crop; windows inside their images (checked where they are made, a kernel cannot); y
//            16-byte aligned.
// Cost       3 bytes read and 12 (6 in bf16) written per pixel: bound by memory.
#include "ingest.hpp"

#include <algorithm>

#include "arch/arch.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 64;   // images per thread block
constexpr int kPixels = 32;  // of an output row
constexpr int kValues = 3 * kPixels;

struct Shared {
  float noise[3][kLanes];
  uint8_t strip[kValues][kLanes + 4];  // [pixel][channel] x lane
};

template <class T>
__global__ void __launch_bounds__(kThreads) ingest_kernel(IngestShape shape,
                                                          const uint8_t* __restrict__ images,
                                                          const int32_t* __restrict__ windows,
                                                          const float* __restrict__ noise,
                                                          const float* __restrict__ mean,
                                                          T* __restrict__ y) {
  Shared& shared = shared_storage<Shared>();
  const int thread = static_cast<int>(threadIdx.x);
  const int crop = static_cast<int>(shape.crop), L = static_cast<int>(shape.lanes);
  const int parts = (L + kLanes - 1) / kLanes;  // of a block of lanes
  const int64_t block = static_cast<int>(blockIdx.x) / parts;
  const int lane0 = static_cast<int>(blockIdx.x) % parts * kLanes;
  const int lanes = L - lane0 < kLanes ? L - lane0 : kLanes;
  const int i = static_cast<int>(blockIdx.y), j0 = static_cast<int>(blockIdx.z) * kPixels;
  const int values = 3 * (crop - j0 < kPixels ? crop - j0 : kPixels);
  const int64_t n0 = block * L + lane0;
  const int existing = n0 + lanes <= shape.valid ? lanes
                       : n0 < shape.valid        ? static_cast<int>(shape.valid - n0)
                                                 : 0;

  for (int k = thread; k < 3 * kLanes; k += kThreads) {
    const int c = k / kLanes, lane = k % kLanes;
    shared.noise[c][lane] = lane < existing ? noise[(n0 + lane) * 3 + c] : 0.0f;
  }
  for (int k = thread; k < kValues * lanes; k += kThreads) {
    const int lane = k / kValues, value = k % kValues;
    if (value >= values) continue;
    uint8_t byte = 0;
    if (lane < existing) {
      const int32_t* window = windows + (n0 + lane) * 3;
      const int j = j0 + value / 3;
      const int64_t row = (n0 + lane) * shape.H + window[0] + i;
      byte = images[(row * shape.W + window[1] + (window[2] ? crop - 1 - j : j)) * 3 + value % 3];
    }
    shared.strip[value][lane] = byte;
  }
  __syncthreads();  // the strip and the noise of all lanes are there

  const int s = static_cast<int>(shape.fold), folded = crop / s;
  const int quads = lanes / 4;
  for (int k = thread; k < values * quads; k += kThreads) {
    const int place = k / quads, lane = (k - place * quads) * 4;
    const int c = place / (values / 3), j = place - c * (values / 3);
    const float m = mean[(int64_t{c} * crop + i) * crop + j0 + j];
    // an index known at run time only would put the shape into local memory
    const float factor = c == 0 ? shape.scale[0] : c == 1 ? shape.scale[1] : shape.scale[2];
    const int column = (j0 + j) / s, channel = (c * s + i % s) * s + (j0 + j - column * s);
    const int64_t pixel = (int64_t{channel} * folded + i / s) * folded + column;
    const uint32_t bytes = load4_bytes(&shared.strip[3 * j + c][lane]);
    const float4 offset = load4(&shared.noise[c][lane]);
    const float added[4] = {offset.x, offset.y, offset.z, offset.w};
    float result[4];
#pragma unroll
    for (int l = 0; l < 4; ++l)
      result[l] = lane + l < existing
                      ? (static_cast<float>(bytes >> (8 * l) & 0xffu) - m + added[l]) * factor
                      : 0.0f;
    store4(y + (block * 3 * crop * crop + pixel) * L + lane0 + lane,
           float4{result[0], result[1], result[2], result[3]});
  }
}

}  // namespace

void ingest(const IngestShape& shape,
            Precision precision,
            const uint8_t* images,
            const int32_t* windows,
            const float* noise,
            const float* mean,
            void* y,
            Stream stream) {
  const int64_t parts =
      image_blocks("ingest", shape.N, shape.lanes) * ((shape.lanes + kLanes - 1) / kLanes);
  require(shape.valid >= 1 && shape.valid <= shape.N,
          "ingest: valid must be 1 to N, got valid=", shape.valid, " N=", shape.N);
  require(shape.crop >= 1 && shape.crop <= std::min({shape.H, shape.W, int64_t{65535}}),
          "ingest: crop must be at least 1 and fit the stored images, got crop=", shape.crop,
          " of ", shape.H, "x", shape.W);
  require(shape.fold >= 1 && shape.crop % shape.fold == 0,
          "ingest: fold must divide crop, got fold=", shape.fold, " crop=", shape.crop);
  require(parts <= kMaxGrid, "ingest: the batch is too large for one launch, got N=", shape.N);
  const Dim3 grid(static_cast<unsigned>(parts), static_cast<unsigned>(shape.crop),
                  static_cast<unsigned>((shape.crop + kPixels - 1) / kPixels));
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(ingest_kernel<T>, grid, Dim3(kThreads), sizeof(Shared), stream, shape, images, windows,
           noise, mean, static_cast<T*>(y));
  });
}

}  // namespace convnet
