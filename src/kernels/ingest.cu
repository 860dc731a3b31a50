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
// Shared     7296 bytes: a strip of tile/input_strip.cuh, which also writes it.
// Barriers   one, between reading and writing.
// Needs      lanes a multiple of 8, 1 <= valid <= N, crop at most H and W and 65535, fold a divisor
//            of crop; windows inside their images (checked where they are made, a kernel cannot); y
//            16-byte aligned.
// Cost       3 bytes read and 12 (6 in bf16) written per pixel: bound by memory.
#include "ingest.hpp"

#include "arch/arch.cuh"
#include "tile/input_strip.cuh"

namespace convnet {
namespace {

template <class T>
__global__ void __launch_bounds__(kStripThreads) ingest_kernel(IngestShape shape,
                                                               const uint8_t* images,
                                                               const int32_t* windows,
                                                               const float* noise,
                                                               const float* mean,
                                                               T* __restrict__ y) {
  begin_kernel();
  Strip& shared = shared_storage<Strip>();
  const StripPlace place = strip_place(shape);
  const int crop = static_cast<int>(shape.crop);
  load_noise(shared, place, noise);
  for (int k = static_cast<int>(threadIdx.x); k < kStripValues * place.lanes; k += kStripThreads) {
    const int lane = k / kStripValues, value = k % kStripValues;
    if (value >= 3 * place.pixels) continue;
    uint8_t byte = 0;
    if (lane < place.existing) {
      const int32_t* window = windows + (place.n0 + lane) * 3;
      const int j = place.j0 + value / 3;
      const int64_t row = (place.n0 + lane) * shape.H + window[0] + place.i;
      byte = images[(row * shape.W + window[1] + (window[2] ? crop - 1 - j : j)) * 3 + value % 3];
    }
    shared.strip[value][lane] = byte;
  }
  __syncthreads();  // the strip and the noise of all lanes are there
  write_strip(shape, shared, place, mean, y);
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
    launch(ingest_kernel<T>, grid, Dim3(kStripThreads), sizeof(Strip), stream, shape, images,
           windows, noise, mean, static_cast<T*>(y));
  });
}

}  // namespace convnet
