// From images as others hold them to lanes.
//
// What       y(n, c*s*s + h%s*s + w%s, h/s, w/s) = x(n, c, h, w), rounded where y is bf16; zero for
//            the images from `valid` on and where a folded size has been rounded up. s = fold.
// Tensors    x float32, any steps between its values; y [N/L][C*s*s][ceil(H/s)][ceil(W/s)][L] by
//            precision.
// Work       one block of 256 threads per up to 64 neighbouring lanes and 32 values of each. x is
//            read along its images, y written along the lanes; in between the block turns the tile
//            round in shared memory.
// Shared     8320 bytes: the tile.
// Barriers   one, between reading and writing.
// Needs      N a multiple of lanes, 1 <= valid <= N, sizes and fold at least 1; all values that the
//            steps lead to inside of x (checked where x comes from, a kernel cannot).
// Cost       4 bytes read and 4 (2 in bf16) written per value: bound by memory.
#include "pack.hpp"

#include "arch/arch.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

constexpr int kPackThreads = 256;
constexpr int kPackLanes = 64;   // per thread block
constexpr int kPackValues = 32;  // of each image

// Rows are one value longer than the lanes, so that a warp that writes a column touches all banks.
struct PackTile {
  float values[kPackValues][kPackLanes + 1];
};

// What the host divides once.
struct Packing {
  int64_t values;  // of an image in y
  int s, P, Q;     // fold; rows and columns of y
  int parts;       // thread blocks that share a block of images
};

template <class T>
__global__ void __launch_bounds__(kPackThreads)
    pack_kernel(PackShape shape, Packing packing, const float* x, T* __restrict__ y) {
  begin_kernel();
  PackTile& tile = shared_storage<PackTile>();
  const int L = static_cast<int>(shape.lanes), s = packing.s;
  const int64_t block = static_cast<int>(blockIdx.y) / packing.parts;
  const int lane0 = static_cast<int>(blockIdx.y) % packing.parts * kPackLanes;
  const int lanes = min(L - lane0, kPackLanes);
  const int64_t n0 = block * L + lane0, first = int64_t{blockIdx.x} * kPackValues;
  const int values = static_cast<int>(min(packing.values - first, int64_t{kPackValues}));
  for (int k = static_cast<int>(threadIdx.x); k < kPackValues * lanes; k += kPackThreads) {
    const int lane = k / kPackValues, value = k % kPackValues;
    if (value >= values) continue;
    const int64_t row = (first + value) / packing.Q, plane = row / packing.P, c = plane / (s * s);
    const int phase = static_cast<int>(plane - c * (s * s));
    const int64_t h = (row - plane * packing.P) * s + phase / s;
    const int64_t w = (first + value - row * packing.Q) * s + phase % s;
    float found = 0.0f;
    if (n0 + lane < shape.valid && h < shape.H && w < shape.W)
      found = x[shape.offset + (n0 + lane) * shape.steps[0] + c * shape.steps[1] +
                h * shape.steps[2] + w * shape.steps[3]];
    tile.values[value][lane] = found;
  }
  __syncthreads();  // the tile is there
  for (int k = static_cast<int>(threadIdx.x); k < values * lanes; k += kPackThreads) {
    const int value = k / lanes, lane = k - value * lanes;
    store1(y + (block * packing.values + first + value) * L + lane0 + lane,
           tile.values[value][lane]);
  }
}

}  // namespace

void pack(const PackShape& shape, Precision precision, const float* x, void* y, Stream stream) {
  const char* op = "pack";
  require(shape.lanes >= 1 && shape.lanes <= shape.N && shape.N % shape.lanes == 0, op,
          ": N must be a multiple of lanes, got N=", shape.N, " lanes=", shape.lanes);
  const int64_t blocks = shape.N / shape.lanes;
  require(shape.valid >= 1 && shape.valid <= shape.N, op,
          ": valid must be 1 to N, got valid=", shape.valid, " N=", shape.N);
  require(shape.C >= 1 && shape.H >= 1 && shape.W >= 1, op,
          ": every size must be at least 1, got C=", shape.C, " H=", shape.H, " W=", shape.W);
  require(shape.fold >= 1 && shape.fold <= 255, op, ": fold must be 1 to 255, got ", shape.fold);
  const int64_t s = shape.fold, P = (shape.H + s - 1) / s, Q = (shape.W + s - 1) / s;
  const int64_t values = shape.C * s * s * P * Q;
  const int64_t parts = (shape.lanes + kPackLanes - 1) / kPackLanes;
  const int64_t strips = (values + kPackValues - 1) / kPackValues;
  require(strips <= kMaxGrid && blocks * parts <= 65535, op,
          ": there is too much for one launch, got N=", shape.N, " and ", values,
          " values of each; use a smaller batch");
  const Packing packing{values, static_cast<int>(s), static_cast<int>(P), static_cast<int>(Q),
                        static_cast<int>(parts)};
  const Dim3 grid(static_cast<unsigned>(strips), static_cast<unsigned>(blocks * parts));
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(pack_kernel<T>, grid, Dim3(kPackThreads), sizeof(PackTile), stream, shape, packing, x,
           static_cast<T*>(y));
  });
}

}  // namespace convnet
