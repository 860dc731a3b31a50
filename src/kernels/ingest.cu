// From stored images to the network's input.
//
// What       y(n, c, i, j) = (image(n, top + i, left + (flip ? crop - 1 - j : j), c) - mean(c, i,
//            j) + noise(n, c)) * scale(c), each operation rounded on its own; zero for the images
//            from `valid` on. Where fold = s > 1 it is written at (i/s, j/s) of channel c*s*s +
//            i%s*s + j%s, so that a first layer of stride s becomes one of stride 1 with s*s times
//            as many channels (fold.cu).
// Tensors    images uint8 [valid][H][W][3], windows int32 [valid][3], noise float32 [valid][3],
//            mean float32 [3][crop][crop], y [N/L][3*s*s][crop/s][crop/s][L] by precision.
// Work       one block of 256 threads per up to 64 neighbouring lanes, output row, and strip of 64
//            pixels of it. Images are read along their rows, a pixel of four images per thread, and
//            written along the lanes, four values per thread; in between the block turns the strip
//            round in shared memory.
// Shared     15872 bytes: where the images lie, and a strip of tile/input_strip.cuh, which also
//            writes it.
// Barriers   two: in front of reading, where the images lie; between reading and writing, the strip.
// Needs      lanes a multiple of 8, 1 <= valid <= N, crop at most H and W and 65535, fold a divisor
//            of crop; windows inside their images (checked where they are made, a kernel cannot); y
//            16-byte aligned.
// Cost       3 bytes read and 12 (6 in bf16) written per pixel: bound by memory.
#include "ingest.hpp"

#include "arch/arch.cuh"
#include "tile/input_strip.cuh"

namespace convnet {
namespace {

struct Storage {
  int64_t first[kStripLanes];  // where the strip's first pixel lies, its red
  int step[kStripLanes];       // from one pixel to the next
  Strip strip;
};

template <class T>
__global__ void __launch_bounds__(kStripThreads) ingest_kernel(IngestShape shape,
                                                               const uint8_t* images,
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
    shared.first[thread] = ((window.n * shape.H + window.row) * shape.W + window.column) * 3;
    shared.step[thread] = 3 * window.step;
  }
  __syncthreads();  // it is known where the images lie
  for_strip_quads(place, [&](int pixel, int lane) {
    uint32_t colours[3] = {};
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      const uint8_t* const source = images + shared.first[lane + l] + shared.step[lane + l] * pixel;
#pragma unroll
      for (int c = 0; c < 3; ++c) colours[c] |= static_cast<uint32_t>(source[c]) << (8 * l);
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) store4_bytes(&shared.strip.colours[c][pixel][lane], colours[c]);
  });
  __syncthreads();  // the strip and what belongs to it are there
  write_strip(shape, shared.strip, place, y);
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
  const Dim3 grid = strip_grid("ingest", shape);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(ingest_kernel<T>, grid, Dim3(kStripThreads), sizeof(Storage), stream, shape, images,
           windows, noise, mean, static_cast<T*>(y));
  });
}

}  // namespace convnet
