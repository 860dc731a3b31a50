// From images kept on the device, as luma and halved chroma, to the network's input.
//
// What       y(n, c, i, j) = (colour(index(n), top + i, left + (flip ? crop - 1 - j : j), c) -
//            mean(c, i, j) + noise(n, c)) * scale(c), each operation rounded on its own; zero for the
//            images from `valid` on; folded as in ingest.cu. The colours of a pixel are whole numbers
//            made of its luma and the chroma of its 2x2 pixels, see ingest_planar.hpp.
// Tensors    luma uint8 [count][H][W], cb and cr uint8 [count][(H + 1) / 2][(W + 1) / 2], index int32
//            [valid], windows int32 [valid][3], noise float32 [valid][3], mean float32
//            [3][crop][crop], y [N/L][3*s*s][crop/s][crop/s][L] by precision.
// Work       one block of 256 threads per up to 64 neighbouring lanes, output row, and strip of 32
//            pixels of it, as in ingest.cu. A warp reads the 32 pixels of one image and turns them
//            into colours before they are turned round.
// Shared     7296 bytes: a strip of tile/input_strip.cuh.
// Barriers   one, between reading and writing.
// Needs      lanes a multiple of 8, 1 <= valid <= N, crop at most H and W and 65535, fold a divisor
//            of crop; indices below count and windows inside their images (checked where they are
//            made, a kernel cannot); y 16-byte aligned.
// Cost       1.5 bytes read and 12 (6 in bf16) written per pixel: bound by memory.
#include "ingest_planar.hpp"

#include "arch/arch.cuh"
#include "tile/input_strip.cuh"

namespace convnet {
namespace {

struct Planes {
  const uint8_t* luma;
  const uint8_t* cb;
  const uint8_t* cr;
};

__device__ __forceinline__ uint8_t cut(int level) {
  return static_cast<uint8_t>(min(max(level, 0), 255));
}

template <class T>
__global__ void __launch_bounds__(kStripThreads) ingest_planar_kernel(IngestShape shape,
                                                                      Planes planes,
                                                                      const int32_t* index,
                                                                      const int32_t* windows,
                                                                      const float* noise,
                                                                      const float* mean,
                                                                      T* __restrict__ y) {
  begin_kernel();
  Strip& shared = shared_storage<Strip>();
  const StripPlace place = strip_place(shape);
  const int H = static_cast<int>(shape.H), W = static_cast<int>(shape.W);
  const int crop = static_cast<int>(shape.crop), half_H = (H + 1) / 2, half_W = (W + 1) / 2;
  load_noise(shared, place, noise);
  for (int k = static_cast<int>(threadIdx.x); k < kStripPixels * place.lanes; k += kStripThreads) {
    const int lane = k / kStripPixels, pixel = k % kStripPixels;
    if (pixel >= place.pixels) continue;
    int red = 0, green = 0, blue = 0;
    if (lane < place.existing) {
      const int64_t image = index[place.n0 + lane];
      const int32_t* window = windows + (place.n0 + lane) * 3;
      const int j = place.j0 + pixel;
      const int row = window[0] + place.i, column = window[1] + (window[2] ? crop - 1 - j : j);
      const int64_t chroma = (image * half_H + row / 2) * half_W + column / 2;
      const int luma = planes.luma[(image * H + row) * W + column];
      const int cb = planes.cb[chroma] - 128, cr = planes.cr[chroma] - 128;
      red = luma + ((91881 * cr + 32768) >> 16);
      green = luma + ((-22554 * cb - 46802 * cr + 32768) >> 16);
      blue = luma + ((116130 * cb + 32768) >> 16);
    }
    shared.strip[3 * pixel][lane] = cut(red);
    shared.strip[3 * pixel + 1][lane] = cut(green);
    shared.strip[3 * pixel + 2][lane] = cut(blue);
  }
  __syncthreads();  // the strip and the noise of all lanes are there
  write_strip(shape, shared, place, mean, y);
}

}  // namespace

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
                   Stream stream) {
  const Dim3 grid = strip_grid("ingest_planar", shape);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(ingest_planar_kernel<T>, grid, Dim3(kStripThreads), sizeof(Strip), stream, shape,
           Planes{luma, cb, cr}, index, windows, noise, mean, static_cast<T*>(y));
  });
}

}  // namespace convnet
