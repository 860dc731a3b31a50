// From images kept on the device, as luma and halved chroma, to the network's input.
//
// What       y(n, c, i, j) = (colour(index(n), top + i, left + (flip ? crop - 1 - j : j), c) -
//            mean(c, i, j) + noise(n, c)) * scale(c), each operation rounded on its own; zero for the
//            images from `valid` on; folded as in ingest.cu. The colours of a pixel are whole numbers
//            made of its luma and the chroma of its 2x2 pixels, see ingest_planar.hpp.
// Tensors    luma uint8 [count][H][W], cb and cr uint8 [count][(H + 1) / 2][(W + 1) / 2], index int32
//            [valid], windows int32 [valid][3], noise float32 [valid][3], mean float32
//            [3][crop][crop], y [N/L][3*s*s][crop/s][crop/s][L] by precision.
// Work       one block of 256 threads per up to 64 neighbouring lanes, output row, and strip of 64
//            pixels of it, as in ingest.cu. A thread turns one pixel of four images into colours; a
//            warp reads 32 neighbouring pixels of each.
// Shared     16640 bytes: where the images lie, and a strip of tile/input_strip.cuh.
// Barriers   two: in front of reading, where the images lie; between reading and writing, the strip.
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

// Where an image's pixels of the strip lie in its planes.
struct Source {
  int64_t luma, chroma;  // where the pixels' rows begin
  int column, step;      // as in StripWindow
};

struct Storage {
  Source sources[kStripLanes];
  Strip strip;
};

template <class T>
__global__ void __launch_bounds__(kStripThreads) ingest_planar_kernel(IngestShape shape,
                                                                      Planes planes,
                                                                      const int32_t* index,
                                                                      const int32_t* windows,
                                                                      const float* noise,
                                                                      const float* mean,
                                                                      T* __restrict__ y) {
  begin_kernel();
  Storage& shared = shared_storage<Storage>();
  const StripPlace place = strip_place(shape);
  load_strip(shape, place, noise, mean, shared.strip);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kStripLanes) {
    const StripWindow window = strip_window(shape, place, windows, thread);
    const int64_t image = index[window.n];
    const int half_H = static_cast<int>(shape.H + 1) / 2,
              half_W = static_cast<int>(shape.W + 1) / 2;
    shared.sources[thread] =
        Source{(image * shape.H + window.row) * shape.W, (image * half_H + window.row / 2) * half_W,
               window.column, window.step};
  }
  __syncthreads();  // it is known where the images lie
  for_strip_quads(place, [&](int pixel, int lane) {
    int red[4], green[4], blue[4];
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      const Source& source = shared.sources[lane + l];
      const int column = source.column + source.step * pixel;
      const int64_t chroma = source.chroma + (column >> 1);
      const int luma = planes.luma[source.luma + column];
      // 128 less than the bytes, which the constants see to
      const int cb = planes.cb[chroma], cr = planes.cr[chroma];
      red[l] = luma + ((91881 * cr + (32768 - 128 * 91881)) >> 16);
      green[l] = luma + ((-22554 * cb - 46802 * cr + (32768 + 128 * (22554 + 46802))) >> 16);
      blue[l] = luma + ((116130 * cb + (32768 - 128 * 116130)) >> 16);
    }
    store4_bytes(&shared.strip.colours[0][pixel][lane], cut_to_bytes(red));
    store4_bytes(&shared.strip.colours[1][pixel][lane], cut_to_bytes(green));
    store4_bytes(&shared.strip.colours[2][pixel][lane], cut_to_bytes(blue));
  });
  __syncthreads();  // the strip and what belongs to it are there
  write_strip(shape, shared.strip, place, y);
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
    launch(ingest_planar_kernel<T>, grid, Dim3(kStripThreads), sizeof(Storage), stream, shape,
           Planes{luma, cb, cr}, index, windows, noise, mean, static_cast<T*>(y));
  });
}

}  // namespace convnet
