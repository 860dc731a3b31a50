// Microbenchmarks of what the kernels' designs assume of the machine. machine.py compiles this file, runs its rows and says
// what each of them answers.
//
// Every row computes something from small integers first, with the kernel that is timed, and compares it with what a loop on
// the host gives; then it is timed on random numbers, which toggle as many wires as a network's (zeros would run faster).
// Compiled for the emulator it stops behind the comparison. What the emulator lacks, the driver's copy and graphs, is left
// out there.
//
// Clocks are those of the multiprocessor (clock64), from the first instruction of the timed loop to the last result of it, of
// the block that took longest; seconds are the device's, by events around the launch.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "../src/kernels/arch/arch.cuh"

#ifdef CONVNET_EMU
inline long long clock64() { return 0; }
#else
#include <chrono>
#endif

namespace convnet {
namespace {

// --- what all rows share

// An array on the device, zeros at first.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t count) : count_(count) {
#ifdef CONVNET_EMU
    const std::size_t bytes = (count * sizeof(T) + 255) / 256 * 256;
    data_ = static_cast<T*>(std::aligned_alloc(256, bytes));
    std::memset(static_cast<void*>(data_), 0, bytes);
#else
    cuda_check(cudaMalloc(&data_, count * sizeof(T)), "allocating");
    cuda_check(cudaMemset(data_, 0, count * sizeof(T)), "clearing");
#endif
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) { write(values); }
  ~Buffer() {
#ifdef CONVNET_EMU
    std::free(data_);
#else
    cudaFree(data_);
#endif
  }
  Buffer(const Buffer&) = delete;
  void operator=(const Buffer&) = delete;

  T* data() const { return data_; }
  void write(const std::vector<T>& values) { copy(data_, values.data()); }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    copy(values.data(), data_);
    return values;
  }

 private:
  // Behind all kernels so far: this is where their failures show.
  void copy(void* target, const void* source) const {
#ifdef CONVNET_EMU
    std::memcpy(target, source, count_ * sizeof(T));
#else
    cuda_check(cudaMemcpy(target, source, count_ * sizeof(T), cudaMemcpyDefault), "copying");
#endif
  }

  T* data_ = nullptr;
  std::size_t count_;
};

class Random {
 public:
  uint32_t next() { return (state_ = state_ * 1664525u + 1013904223u) >> 8; }
  float small() { return static_cast<float>(static_cast<int>(next() % 9) - 4); }
  float real() { return static_cast<float>(next()) / (1 << 23) - 1.0f; }  // -1 to 1

 private:
  uint32_t state_ = 1;
};

// Of float32 numbers, the upper half; small integers have nothing in the lower one.
uint16_t upper_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>(bits >> 16);
}

// Comparing results of a row; the difference that is named is the first one.
void expect(float found, double expected, const char* what, int64_t index) {
  if (found != expected)
    throw std::runtime_error(
        message("wrong result: ", what, " ", index, " is ", found, ", not ", expected));
}

// What was measured: zeros where nothing was.
struct Timing {
  double seconds = 0;
  double clocks = 0;           // 0: not counted
  double work = 0;             // FLOPs, bytes or launches of the whole device in that time
  double multiprocessors = 0;  // that took part
};

#ifdef CONVNET_EMU
template <class Launch>
Timing timed(double, int, double, int, int, Launch) {
  return {};
}
#else
double event_seconds(const std::function<void()>& work, cudaStream_t stream = nullptr) {
  cudaEvent_t before, after;
  cuda_check(cudaEventCreate(&before), "creating an event");
  cuda_check(cudaEventCreate(&after), "creating an event");
  cuda_check(cudaEventRecord(before, stream), "recording an event");
  work();
  cuda_check(cudaEventRecord(after, stream), "recording an event");
  cuda_check(cudaEventSynchronize(after), "waiting for kernels");
  float milliseconds = 0;
  cuda_check(cudaEventElapsedTime(&milliseconds, before, after), "reading events");
  cudaEventDestroy(before);
  cudaEventDestroy(after);
  return milliseconds / 1e3;
}

// Times launch(trips, clocks) three times, with as many trips as fill a third of `seconds` each by the time that `first` of
// them took, and returns the one that took the median time. `clocks` is an array with a number for each block, or stays as it
// is.
template <class Launch>
Timing timed(double seconds, int first, double work_per_trip, int blocks, int used, Launch launch) {
  Buffer<long long> clocks(static_cast<std::size_t>(blocks));
  launch(first, clocks.data());  // loads the code
  const double once = event_seconds([&] { launch(first, clocks.data()); }) / first;
  const int trips = static_cast<int>(std::clamp(seconds / 3 / once, 1.0 * first, 1e8));
  std::vector<Timing> runs;
  for (int i = 0; i < 3; ++i) {
    Timing run;
    run.seconds = event_seconds([&] { launch(trips, clocks.data()); });
    const std::vector<long long> found = clocks.read();
    run.clocks = static_cast<double>(*std::max_element(found.begin(), found.end()));
    run.work = work_per_trip * trips;
    run.multiprocessors = used;
    runs.push_back(run);
  }
  std::sort(runs.begin(), runs.end(), [](auto& x, auto& y) { return x.seconds < y.seconds; });
  return runs[1];
}
#endif

// --- products of warpgroups: two consumer warpgroups on a multiprocessor, as in our kernels

constexpr int kGroup = 128, kConsumers = 2;
constexpr int kTerms = 16,
              kDepth = 64;  // of a product, and of the operands that lie in shared memory

// How an operand of `rows` rows (or columns) of kDepth terms lies in shared memory: in spans of a swizzle, along the terms
// (K-major) or along the rows.
struct Placement {
  bool along_terms;
  Swizzle swizzle;
  int rows;

  __host__ __device__ constexpr int bytes() const { return rows * kDepth * 2; }
  __host__ __device__ constexpr int span() const { return 16 << static_cast<int>(swizzle); }
  // The descriptor's steps: between spans along the rows (where terms are contiguous it is ignored), and between groups of
  // eight lines of a span.
  __host__ __device__ constexpr int lbo() const { return (along_terms ? 8 : kDepth) * span(); }
  __host__ __device__ constexpr int sbo() const { return 8 * span(); }
  // From the operand's begin to its terms from `term` on.
  __host__ __device__ constexpr int step(int term) const {
    return along_terms ? term * 2 / span() * rows * span() + term * 2 % span() : term * span();
  }
  // Where an element lies; operands begin at multiples of the swizzle's period.
  int at(int row, int term) const {
    const int plain = along_terms
                          ? step(term) + row * span()
                          : row * 2 / span() * kDepth * span() + step(term) + row * 2 % span();
    return plain ^ (plain >> 7 & (span() / 16 - 1)) << 4;
  }
};

// A and B of the three passes as tile/wgmma_maps.cuh and tile/wgmma_filter.cuh have them.
struct Forward {  // strips of x: lanes contiguous; weights: filters contiguous
  static constexpr bool kRegisters = false;
  static constexpr Placement kA{false, Swizzle::bytes128, 64};
  __host__ __device__ static constexpr Placement b(int n) {
    return {false, Swizzle::bytes128, (n + 63) / 64 * 64};
  }
};
struct
    BackwardData {  // strips of dy: lanes contiguous; weights: the reduction contiguous, 32 filters a stage
  static constexpr bool kRegisters = false;
  static constexpr Placement kA{false, Swizzle::bytes128, 64};
  __host__ __device__ static constexpr Placement b(int n) { return {true, Swizzle::bytes64, n}; }
};
struct BackwardFilter {  // dy and x: the reduction contiguous, over half of the lanes
  static constexpr bool kRegisters = false;
  static constexpr Placement kA{true, Swizzle::bytes64, 64};
  __host__ __device__ static constexpr Placement b(int n) { return {true, Swizzle::bytes64, n}; }
};
struct Registers {  // A in registers, which no kernel of ours has; B as in Forward
  static constexpr bool kRegisters = true;
  static constexpr Placement kA{true, Swizzle::bytes128, 64};
  __host__ __device__ static constexpr Placement b(int n) { return Forward::b(n); }
};

// `image` is shared memory: A of either warpgroup, B. sums [2][128][N / 2] of the first block.
template <class Operands, int N>
__global__ void __launch_bounds__(kConsumers* kGroup, 1)
    wgmma_kernel(const uint32_t* image, int trips, float* sums, long long* clocks) {
  begin_kernel();
  constexpr Placement kA = Operands::kA, kB = Operands::b(N);
  unsigned char* shared = &shared_storage<unsigned char>();
  const int words = (kConsumers * kA.bytes() + kB.bytes()) / 4;
  for (int i = threadIdx.x; i < words; i += kConsumers * kGroup)
    reinterpret_cast<uint32_t*>(shared)[i] = image[i];
  fence_async_proxy();
  const int group = warp_uniform(threadIdx.x / kGroup), thread = threadIdx.x % kGroup;
  const uint64_t a_operand = operand(shared + group * kA.bytes(), kA.lbo(), kA.sbo(), kA.swizzle);
  const uint64_t b_operand =
      operand(shared + kConsumers * kA.bytes(), kB.lbo(), kB.sbo(), kB.swizzle);
  uint32_t fragments[kDepth / kTerms][4] = {};
  if constexpr (Operands::kRegisters) {
    // The fragments of mma_bf16, of rows that lie one behind the other.
    const uint32_t* rows = image + group * kA.bytes() / 4;
    const int row = thread / 32 * 16 + thread % 32 / 4, term = thread % 4 * 2;
#pragma unroll
    for (int k = 0; k < kDepth / kTerms; ++k) {
#pragma unroll
      for (int r = 0; r < 4; ++r)
        fragments[k][r] = rows[((row + r % 2 * 8) * kDepth + k * kTerms + term + r / 2 * 8) / 2];
      hold(fragments[k]);
    }
  }
  float sum[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) sum[i] = 0.0f;
  hold(sum);
  __syncthreads();
  const long long start = clock64();
  for (int trip = 0; trip < trips; ++trip) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDepth / kTerms; ++k) {
      constexpr bool kTransposeB = !kB.along_terms;
      const uint64_t b = advance(b_operand, kB.step(k * kTerms));
      if constexpr (Operands::kRegisters)
        wgmma<N, kTransposeB>(sum, fragments[k], b);
      else
        wgmma<N, !kA.along_terms, kTransposeB>(sum, advance(a_operand, kA.step(k * kTerms)), b);
    }
    wgmma_commit();
    wgmma_wait<1>();  // the group before is done, as in our kernels
  }
  wgmma_wait<0>();
  hold(sum);
  __syncthreads();
  if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - start;
  if (blockIdx.x > 0) return;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) sums[(group * kGroup + thread) * (N / 2) + i] = sum[i];
}

Timing time_products(void (*kernel)(const uint32_t*, int, float*, long long*),
                     Placement a_placement,
                     Placement b_placement,
                     bool registers,
                     int n,
                     double seconds) {
  constexpr int kTrips = 3;
  const int a_bytes = kConsumers * a_placement.bytes(), bytes = a_bytes + b_placement.bytes();
  Random random;
  std::vector<uint32_t> image(bytes / 4);
  const auto put = [&](int place, float value) {
    const uint16_t bits = upper_half(value);
    std::memcpy(reinterpret_cast<unsigned char*>(image.data()) + place, &bits, 2);
  };
  // a [group][row][term], b [column][term]
  std::vector<float> a(kConsumers * 64 * kDepth), b(n * kDepth);
  for (int i = 0; i < int(a.size()); ++i) {
    const int group = i / (64 * kDepth), row = i / kDepth % 64, term = i % kDepth;
    const int place = registers ? (row * kDepth + term) * 2 : a_placement.at(row, term);
    put(group * a_placement.bytes() + place, a[i] = random.small());
  }
  for (int i = 0; i < int(b.size()); ++i)
    put(a_bytes + b_placement.at(i / kDepth, i % kDepth), b[i] = random.small());
  Buffer<uint32_t> operands(image);
  const Buffer<float> sums(kConsumers * kGroup * n / 2);
  const unsigned blocks = static_cast<unsigned>(multiprocessors());
  const auto start = [&](int trips, long long* clocks) {
    launch(kernel, Dim3(blocks), Dim3(kConsumers * kGroup), bytes, nullptr, operands.data(), trips,
           sums.data(), clocks);
  };
  const Buffer<long long> unused(blocks);
  start(kTrips, unused.data());
  const std::vector<float> found = sums.read();
  for (int i = 0; i < int(found.size()); ++i) {
    const int group = i / (kGroup * n / 2), thread = i / (n / 2) % kGroup, r = i % (n / 2);
    const int row = thread / 32 * 16 + thread % 32 / 4 + r / 2 % 2 * 8;
    const int column = r / 4 * 8 + thread % 4 * 2 + r % 2;
    double sum = 0;
    for (int k = 0; k < kDepth; ++k)
      sum += a[(group * 64 + row) * kDepth + k] * b[column * kDepth + k];
    expect(found[i], kTrips * sum, "sum", i);
  }
  for (uint32_t& pair : image)
    pair = upper_half(random.real()) | static_cast<uint32_t>(upper_half(random.real())) << 16;
  operands.write(image);
  const double flops = 2.0 * kConsumers * 64 * n * kDepth * blocks;
  return timed(seconds, 1000, flops, int(blocks), int(blocks), start);
}

template <class Operands, int N>
Timing wgmma_row(double seconds) {
  return time_products(wgmma_kernel<Operands, N>, Operands::kA, Operands::b(N),
                       Operands::kRegisters, N, seconds);
}

// --- tensor copies out of the second level of cache

// A bfloat16 activation [kBlocks][kMaps][kRows][kColumns][64 lanes] of 11 MB, which stays in that cache, read in boxes of
// kBoxBytes as the Hopper kernels read theirs: of every map a row of kRowBytes at every pixel, so that rows of 128 bytes are
// whole lines, and rows of 64 bytes the two halves of a line one after the other.
constexpr int kLanes = 64, kColumns = 13, kRows = 13, kMaps = 256, kBlocks = 2;
constexpr int kValues = kLanes * kColumns * kRows * kMaps * kBlocks;
constexpr int kBoxColumns = 8, kBoxBytes = 16384;
constexpr int kStages = 6, kStageBytes = 2 * kBoxBytes;  // a stage is two boxes

template <int kRowBytes>
struct Boxes {
  static constexpr int kBoxLanes = kRowBytes / 2;
  static constexpr int kBoxMaps = kBoxBytes / kRowBytes / kBoxColumns;
  static constexpr int kParts = kLanes / kBoxLanes, kChunks = kMaps / kBoxMaps;
  static constexpr int kCount = kParts * 2 * kChunks * kRows * kBlocks;
  static constexpr Swizzle kSwizzle = kRowBytes == 128 ? Swizzle::bytes128 : Swizzle::bytes64;

  int lane, map, column, row, block;  // where box `n` begins
  __host__ __device__ explicit Boxes(int n) {
    lane = n % kParts * kBoxLanes;
    n /= kParts;
    column = n % 2 * (kColumns - kBoxColumns);
    n /= 2;
    map = n % kChunks * kBoxMaps;
    n /= kChunks;
    row = n % kRows;
    block = n / kRows % kBlocks;
  }
};

struct CopyShared {
  alignas(1024) unsigned char stages[kStages][2][kBoxBytes];
  Barrier full[kStages], empty[kStages];
};

// Blocks on their own: each loads both boxes of its stages.
struct Alone {
  static constexpr int kTogether = 1;
  static __device__ __forceinline__ void meet() { __syncthreads(); }
  template <class Box>
  static __device__ __forceinline__ void load(unsigned char (*stage)[kBoxBytes],
                                              const TensorMap& map,
                                              Barrier& full,
                                              int first) {
    for (int half = 0; half < 2; ++half) {
      const Box box((first + half) % Box::kCount);
      tma_load(stage[half], map, full, box.lane, box.map, box.column, box.row, box.block);
    }
  }
  static __device__ __forceinline__ void release(Barrier& empty) { barrier_arrive(empty); }
};

// Clusters of two blocks that need the same boxes: each loads one of a stage's two, into both. A block's `full` expects the
// bytes of both boxes, whoever has sent for them. Its `empty` counts two arrivals, one of each block, as its copies overwrite
// the stage in both: whoever has used a stage says so to both. A block can be at most one round ahead of the other, since it
// fills a stage again only when the other has used its last filling.
struct Pair {
  static constexpr int kTogether = 2;
  static __device__ __forceinline__ void meet() { cluster_sync(); }
  template <class Box>
  static __device__ __forceinline__ void load(unsigned char (*stage)[kBoxBytes],
                                              const TensorMap& map,
                                              Barrier& full,
                                              int first) {
    const int half = cluster_rank();
    const Box box((first + half) % Box::kCount);
    tma_load_multicast(stage[half], map, full, 3, box.lane, box.map, box.column, box.row,
                       box.block);
  }
  static __device__ __forceinline__ void release(Barrier& empty) {
    for (int rank = 0; rank < kTogether; ++rank) barrier_arrive_at(empty, rank);
  }
};

// One warp per block. The blocks of a cluster read boxes from their own place on; sums [gridDim.x][32], where asked for: every
// word that arrived times its odd place in the stage.
template <class Blocks, int kRowBytes>
__global__ void __launch_bounds__(32, 1) copy_boxes_kernel(const __grid_constant__ TensorMap map,
                                                           int fillings,
                                                           bool summed,
                                                           uint32_t* sums,
                                                           long long* clocks) {
  using Box = Boxes<kRowBytes>;
  CopyShared& shared = shared_storage<CopyShared>();
  const int lane = threadIdx.x;
  if (lane == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(shared.full[i], 1);
      barrier_init(shared.empty[i], Blocks::kTogether);
    }
    fence_barrier_init();
  }
  Blocks::meet();  // no copy and no arrival comes before the barriers are there
  begin_kernel();
  const int together = blockIdx.x / Blocks::kTogether;
  const int first = together * (Box::kCount / (gridDim.x / Blocks::kTogether));
  uint32_t sum = 0;
  const long long start = clock64();
  for (int i = 0; i < fillings + kStages - 1; ++i) {
    if (i < fillings) {
      const int stage = i % kStages;
      barrier_wait(shared.empty[stage], i / kStages % 2 ^ 1);
      if (lane == 0) {
        barrier_expect(shared.full[stage], kStageBytes);
        Blocks::template load<Box>(shared.stages[stage], map, shared.full[stage], first + 2 * i);
      }
    }
    const int used = i - (kStages - 1);
    if (used < 0) continue;
    const int stage = used % kStages;
    barrier_wait(shared.full[stage], used / kStages % 2);
    if (summed) {
      const uint32_t* words = reinterpret_cast<const uint32_t*>(shared.stages[stage]);
      for (int w = lane; w < kStageBytes / 4; w += 32) sum += words[w] * (2u * w + 1u);
    }
    __syncwarp();  // all lanes have used the stage
    if (lane == 0) Blocks::release(shared.empty[stage]);
  }
  if (lane == 0) clocks[blockIdx.x] = clock64() - start;
  sums[blockIdx.x * 32 + lane] = sum;
  Blocks::meet();  // no block ends while the other can still arrive at its barriers
}

template <int kRowBytes>
uint32_t expected_sum(const std::vector<uint16_t>& values, int first, int fillings) {
  using Box = Boxes<kRowBytes>;
  uint32_t sum = 0;
  for (int i = 0; i < 2 * fillings; ++i) {
    const Box box((first + i) % Box::kCount);
    for (int at = 0; at < kBoxBytes; at += 4) {
      const int lane = at % kRowBytes / 2, map = at / kRowBytes % Box::kBoxMaps,
                column = at / kRowBytes / Box::kBoxMaps;
      const std::size_t line =
          ((std::size_t(box.block) * kMaps + box.map + map) * kRows + box.row) * kColumns +
          box.column + column;
      uint32_t word;
      std::memcpy(&word, &values[line * kLanes + box.lane + lane], 4);
      const int place = at ^ (at >> 7 & (kRowBytes / 16 - 1)) << 4;
      sum += word * (2u * ((i % 2 * kBoxBytes + place) / 4) + 1u);
    }
  }
  return sum;
}

template <class Blocks, int kRowBytes>
unsigned copying_blocks() {
#ifndef CONVNET_EMU
  if constexpr (Blocks::kTogether > 1) {
    // Blocks that wait for others to end would spoil the rate.
    cudaLaunchAttribute pairs{};
    pairs.id = cudaLaunchAttributeClusterDimension;
    pairs.val.clusterDim.x = Blocks::kTogether;
    pairs.val.clusterDim.y = pairs.val.clusterDim.z = 1;
    cudaLaunchConfig_t configuration{};
    configuration.gridDim = dim3(static_cast<unsigned>(multiprocessors()) / 2 * 2);
    configuration.blockDim = dim3(32);
    configuration.dynamicSmemBytes = sizeof(CopyShared);
    configuration.attrs = &pairs;
    configuration.numAttrs = 1;
    const auto kernel = reinterpret_cast<const void*>(copy_boxes_kernel<Blocks, kRowBytes>);
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    sizeof(CopyShared)),
               "opting into shared memory");
    int clusters = 0;
    cuda_check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &configuration),
               "counting clusters");
    require(clusters > 0, "this device cannot run clusters of two blocks with ", sizeof(CopyShared),
            " bytes of shared memory each");
    return static_cast<unsigned>(std::min(2 * clusters, multiprocessors() / 2 * 2));
  }
#endif
  return static_cast<unsigned>(multiprocessors()) / Blocks::kTogether * Blocks::kTogether;
}

template <class Blocks, int kRowBytes>
Timing copy_row(double seconds) {
  using Box = Boxes<kRowBytes>;
  constexpr int kFillings = 2 * kStages + 1;
  Random random;
  std::vector<uint16_t> values(kValues);
  for (uint16_t& value : values) value = static_cast<uint16_t>(random.next());
  const Buffer<uint16_t> tensor(values);
  constexpr int64_t kPixel = 2 * kLanes;
  const TensorMap map = tensor_map(
      "activation", Element::bf16, tensor.data(), {kLanes, kMaps, kColumns, kRows, kBlocks},
      {kRows * kColumns * kPixel, kPixel, kColumns * kPixel, kMaps * kRows * kColumns * kPixel},
      {Box::kBoxLanes, Box::kBoxMaps, kBoxColumns, 1, 1}, Box::kSwizzle);
  const unsigned blocks = copying_blocks<Blocks, kRowBytes>();
  const Buffer<uint32_t> sums(blocks * 32);
  const auto start = [&](int fillings, long long* clocks, bool summed) {
    launch(copy_boxes_kernel<Blocks, kRowBytes>, Grid(Dim3(blocks), Blocks::kTogether), Dim3(32),
           sizeof(CopyShared), nullptr, map, fillings, summed, sums.data(), clocks);
  };
  const Buffer<long long> unused(blocks);
  start(kFillings, unused.data(), true);
  const std::vector<uint32_t> found = sums.read();
  for (unsigned block = 0; block < blocks; ++block) {
    uint32_t sum = 0;
    for (int lane = 0; lane < 32; ++lane) sum += found[block * 32 + lane];
    const int together = block / Blocks::kTogether;
    const int first = together * (Box::kCount / (int(blocks) / Blocks::kTogether));
    const uint32_t expected = expected_sum<kRowBytes>(values, first, kFillings);
    if (sum != expected)
      throw std::runtime_error(message("wrong result: what block ", block, " received adds up to ",
                                       sum, ", not ", expected));
  }
  return timed(seconds, 1000, 1.0 * kStageBytes * blocks, int(blocks), int(blocks),
               [&](int fillings, long long* clocks) { start(fillings, clocks, false); });
}

// --- products of warps and multiply-adds: two blocks on a multiprocessor, as in our kernels

constexpr int kM = 4, kN = 8;  // products of 16 x 8 sums: a warp has 64 x 64

// fragments [kM * 4 + kN * 2][32 lanes], the same for all warps; sums [kM * kN * 4][32] of the first.
template <bool kTf32>
__global__ void __launch_bounds__(128, 2)
    mma_kernel(const uint32_t* fragments, int trips, float* sums, long long* clocks) {
  begin_kernel();
  const int lane = threadIdx.x % 32;
  uint32_t a[kM][4], b[kN][2];
  float sum[kM][kN][4] = {};
#pragma unroll
  for (int i = 0; i < kM * 4; ++i) a[i / 4][i % 4] = fragments[i * 32 + lane];
#pragma unroll
  for (int i = 0; i < kN * 2; ++i) b[i / 2][i % 2] = fragments[(kM * 4 + i) * 32 + lane];
  __syncthreads();
  const long long start = clock64();
  for (int trip = 0; trip < trips; ++trip) {
    if constexpr (kTf32)
      mma_tf32(sum, a, b);
    else
      mma_bf16(sum, a, b);
  }
  __syncthreads();
  if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - start;
  if (blockIdx.x > 0 || threadIdx.x >= 32) return;
#pragma unroll
  for (int i = 0; i < kM * kN * 4; ++i) sums[i * 32 + lane] = sum[i / (kN * 4)][i / 4 % kN][i % 4];
}

template <bool kTf32>
Timing mma_row(double seconds) {
  constexpr int kTrips = 3, kDepth = kTf32 ? 8 : 16, kPerRegister = kTf32 ? 1 : 2,
                kFragments = kM * 4 + kN * 2;
  Random random;
  std::vector<float> a(kM * 16 * kDepth), b(kN * 8 * kDepth);  // [row][term], [column][term]
  for (float& x : a) x = random.small();
  for (float& x : b) x = random.small();
  std::vector<uint32_t> fragments(kFragments * 32);
  for (int i = 0; i < kFragments * 32; ++i) {
    const int lane = i % 32, r = i / 32 < kM * 4 ? i / 32 : i / 32 - kM * 4;
    // Which row or column, and the first of its terms.
    const bool of_a = i / 32 < kM * 4;
    const int row = of_a ? r / 4 * 16 + lane / 4 + r % 2 * 8 : r / 2 * 8 + lane / 4;
    const int term = lane % 4 * kPerRegister + (of_a ? r % 4 / 2 : r % 2) * 4 * kPerRegister;
    const float* x = &(of_a ? a : b)[row * kDepth + term];
    if (kTf32)
      std::memcpy(&fragments[i], x, 4);
    else
      fragments[i] = upper_half(x[0]) | static_cast<uint32_t>(upper_half(x[1])) << 16;
  }
  Buffer<uint32_t> operands(fragments);
  const Buffer<float> sums(kM * kN * 4 * 32);
  const unsigned blocks = 2 * static_cast<unsigned>(multiprocessors());
  const auto start = [&](int trips, long long* clocks) {
    launch(mma_kernel<kTf32>, Dim3(blocks), Dim3(128), 0, nullptr, operands.data(), trips,
           sums.data(), clocks);
  };
  const Buffer<long long> unused(blocks);
  start(kTrips, unused.data());
  const std::vector<float> found = sums.read();
  for (int i = 0; i < int(found.size()); ++i) {
    const int lane = i % 32, r = i / 32;
    const int row = r / (kN * 4) * 16 + lane / 4 + r % 4 / 2 * 8;
    const int column = r / 4 % kN * 8 + lane % 4 * 2 + r % 2;
    double sum = 0;
    for (int k = 0; k < kDepth; ++k) sum += a[row * kDepth + k] * b[column * kDepth + k];
    expect(found[i], kTrips * sum, "sum", i);
  }
  for (uint32_t& word : fragments) {
    const float x = random.real(), y = random.real();
    std::memcpy(&word, &x, 4);
    word = kTf32 ? word & 0xffffe000u : upper_half(x) | static_cast<uint32_t>(upper_half(y)) << 16;
  }
  operands.write(fragments);
  const double flops = 2.0 * kM * 16 * kN * 8 * kDepth * 4 * blocks;
  return timed(seconds, 1000, flops, int(blocks), int(blocks) / 2, start);
}

// values [16][32 lanes]; sums [64][32] of the first warp
__global__ void __launch_bounds__(256, 2)
    ffma_kernel(const float* values, int trips, float* sums, long long* clocks) {
  begin_kernel();
  const int lane = threadIdx.x % 32;
  float a[8], b[8], sum[8][8] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) a[i] = values[i * 32 + lane], b[i] = values[(8 + i) * 32 + lane];
  __syncthreads();
  const long long start = clock64();
#pragma unroll 2
  for (int trip = 0; trip < trips; ++trip)
#pragma unroll
    for (int i = 0; i < 64; ++i) sum[i / 8][i % 8] = fma_rn(a[i / 8], b[i % 8], sum[i / 8][i % 8]);
  __syncthreads();
  if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - start;
  if (blockIdx.x > 0 || threadIdx.x >= 32) return;
#pragma unroll
  for (int i = 0; i < 64; ++i) sums[i * 32 + lane] = sum[i / 8][i % 8];
}

Timing ffma_row(double seconds) {
  constexpr int kTrips = 3;
  Random random;
  std::vector<float> values(16 * 32);
  for (float& x : values) x = random.small();
  Buffer<float> operands(values);
  const Buffer<float> sums(64 * 32);
  const unsigned blocks = 2 * static_cast<unsigned>(multiprocessors());
  const auto start = [&](int trips, long long* clocks) {
    launch(ffma_kernel, Dim3(blocks), Dim3(256), 0, nullptr, operands.data(), trips, sums.data(),
           clocks);
  };
  const Buffer<long long> unused(blocks);
  start(kTrips, unused.data());
  const std::vector<float> found = sums.read();
  for (int i = 0; i < int(found.size()); ++i) {
    const int lane = i % 32, r = i / 32;
    expect(found[i], 1.0 * kTrips * values[r / 8 * 32 + lane] * values[(8 + r % 8) * 32 + lane],
           "sum", i);
  }
  for (float& x : values) x = random.real();
  operands.write(values);
  return timed(seconds, 1000, 2.0 * 64 * 256 * blocks, int(blocks), int(blocks) / 2, start);
}

// --- device memory

#ifdef CONVNET_EMU
constexpr int64_t kMemoryValues = 4096;
#else
constexpr int64_t kMemoryValues = int64_t{1} << 26;  // 256 MB of float32, far more than any cache
#endif

std::vector<float> random_values() {
  Random random;
  std::vector<float> values(kMemoryValues);
  for (float& x : values) x = random.small();
  return values;
}

__global__ void __launch_bounds__(256, 8)
    copy_kernel(const float* source, float* target, int64_t quads) {
  begin_kernel();
  for (int64_t i = blockIdx.x * 256 + threadIdx.x; i < quads; i += gridDim.x * 256)
    store4(target + 4 * i, load4(source + 4 * i));
}

void check_copy(const std::vector<float>& values, const Buffer<float>& target) {
  const std::vector<float> found = target.read();
  for (std::size_t i = 0; i < found.size(); ++i) expect(found[i], values[i], "value", int64_t(i));
}

Timing kernel_copy_row(double seconds) {
  const std::vector<float> values = random_values();
  const Buffer<float> source(values), target(values.size());
  const unsigned blocks = 8 * static_cast<unsigned>(multiprocessors());
  const auto start = [&](int copies, long long*) {
    for (int i = 0; i < copies; ++i)
      launch(copy_kernel, Dim3(blocks), Dim3(256), 0, nullptr, source.data(), target.data(),
             kMemoryValues / 4);
  };
  start(1, nullptr);
  check_copy(values, target);
  return timed(seconds, 3, 8.0 * kMemoryValues, int(blocks), multiprocessors(), start);
}

// w and v in float32, and a copy of w in bfloat16: reads 8 bytes of each value and writes 10.
__global__ void __launch_bounds__(256, 8) update_kernel(
    float* weight, float* velocity, bf16* copy, float momentum, float decay, int64_t quads) {
  begin_kernel();
  for (int64_t i = blockIdx.x * 256 + threadIdx.x; i < quads; i += gridDim.x * 256) {
    float4 w = load4(weight + 4 * i), v = load4(velocity + 4 * i);
    const auto step = [&](float& w, float& v) {
      v = sub_rn(mul_rn(momentum, v), mul_rn(decay, w));
      w = add_rn(w, v);
    };
    step(w.x, v.x), step(w.y, v.y), step(w.z, v.z), step(w.w, v.w);
    store4(weight + 4 * i, w);
    store4(velocity + 4 * i, v);
    store4(copy + 4 * i, w);
  }
}

Timing update_row(double seconds) {
  const std::vector<float> values = random_values();
  const Buffer<float> weight(values), velocity(values);
  const Buffer<bf16> copy(values.size());
  const unsigned blocks = 8 * static_cast<unsigned>(multiprocessors());
  const auto start = [&](int updates, long long*) {
    for (int i = 0; i < updates; ++i)
      launch(update_kernel, Dim3(blocks), Dim3(256), 0, nullptr, weight.data(), velocity.data(),
             copy.data(), 0.5f, 0.25f, kMemoryValues / 4);
  };
  start(1, nullptr);
  // From w = v = x it makes v = x / 4 and w = 5 x / 4, which bfloat16 holds.
  const std::vector<float> w = weight.read(), v = velocity.read();
  const std::vector<bf16> rounded = copy.read();
  for (std::size_t i = 0; i < values.size(); ++i) {
    expect(w[i], 1.25f * values[i], "weight", int64_t(i));
    expect(v[i], 0.25f * values[i], "velocity", int64_t(i));
    if (rounded[i].bits != upper_half(w[i]))
      throw std::runtime_error(message("wrong result: the bfloat16 copy of weight ", i));
  }
  return timed(seconds, 3, 18.0 * kMemoryValues, int(blocks), multiprocessors(), start);
}

#ifndef CONVNET_EMU
Timing driver_copy_row(double seconds) {
  const std::vector<float> values = random_values();
  const Buffer<float> source(values), target(values.size());
  const auto start = [&](int copies, long long*) {
    for (int i = 0; i < copies; ++i)
      cuda_check(cudaMemcpyAsync(target.data(), source.data(), 4 * kMemoryValues,
                                 cudaMemcpyDeviceToDevice, nullptr),
                 "copying on the device");
  };
  start(1, nullptr);
  check_copy(values, target);
  return timed(seconds, 3, 8.0 * kMemoryValues, 1, multiprocessors(), start);
}
#endif

// --- launches

constexpr int kLaunches = 200;  // well below the number that a stream takes without waiting

// As every kernel waits for the one before it, none loses another's count.
__global__ void counting_kernel(int* count) {
  begin_kernel();
  if (blockIdx.x == 0 && threadIdx.x == 0) ++*count;
}

// A chain of kernels that do nothing, as large as the small ones of a step or as those of Hopper.
template <bool kLarge>
struct Chain {
  static constexpr unsigned kThreads = kLarge ? 384 : 128;
  static constexpr std::size_t kShared = kLarge ? 200 * 1024 : 0;
};

#ifdef CONVNET_EMU
template <bool kLarge, bool kProgrammatic, bool kGraph>
Timing launch_row(double) {
  const Buffer<int> count(1);
  for (int i = 0; i < 3; ++i)
    launch(counting_kernel, Dim3(3), Dim3(Chain<kLarge>::kThreads), Chain<kLarge>::kShared, nullptr,
           count.data());
  expect(static_cast<float>(count.read()[0]), 3, "number of launches", 0);
  return {};
}
#else
// Keeps the device busy for so many clocks, so that it finds all launches behind it queued.
__global__ void busy_kernel(long long clocks) {
  const long long start = clock64();
  while (clock64() - start < clocks) continue;
}
constexpr long long kBusyClocks =
    10'000'000;  // 5 to 7 ms, in which the host can queue more than a thousand

template <bool kLarge>
void launch_chain(cudaStream_t stream, bool programmatic, int* count) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t configuration{};
  configuration.gridDim = dim3(static_cast<unsigned>(multiprocessors()));
  configuration.blockDim = dim3(Chain<kLarge>::kThreads);
  configuration.dynamicSmemBytes = Chain<kLarge>::kShared;
  configuration.stream = stream;
  configuration.attrs = &early;
  configuration.numAttrs = programmatic ? 1 : 0;
  for (int i = 0; i < kLaunches; ++i)
    cuda_check(cudaLaunchKernelEx(&configuration, counting_kernel, count), "kernel launch");
}

// Median of the seconds of a chain of kLaunches; `clocks` stays empty.
template <bool kLarge, bool kProgrammatic, bool kGraph>
Timing launch_row(double) {
  cuda_check(
      cudaFuncSetAttribute(reinterpret_cast<const void*>(counting_kernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, Chain<true>::kShared),
      "opting into shared memory");
  const Buffer<int> count(1);
  cudaStream_t stream;
  cuda_check(cudaStreamCreate(&stream), "creating a stream");
  cudaGraphExec_t ready = nullptr;
  if (kGraph) {
    cudaGraph_t graph;
    cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
    launch_chain<kLarge>(stream, kProgrammatic, count.data());
    cuda_check(cudaStreamEndCapture(stream, &graph), "capturing");
    cuda_check(cudaGraphInstantiate(&ready, graph, 0), "instantiating a graph");
    cuda_check(cudaGraphDestroy(graph), "destroying a graph");
  }
  const auto chain = [&] {
    if (kGraph)
      cuda_check(cudaGraphLaunch(ready, stream), "launching a graph");
    else
      launch_chain<kLarge>(stream, kProgrammatic, count.data());
  };
  constexpr int kRepeats = 5;
  chain();
  std::vector<double> found;
  for (int i = 0; i < kRepeats; ++i) {
    busy_kernel<<<1, 1, 0, stream>>>(kBusyClocks);
    cuda_check(cudaGetLastError(), "kernel launch");
    found.push_back(event_seconds(chain, stream));
  }
  expect(static_cast<float>(count.read()[0]), (1 + kRepeats) * kLaunches, "number of launches", 0);
  if (kGraph) cudaGraphExecDestroy(ready);
  cudaStreamDestroy(stream);
  std::sort(found.begin(), found.end());
  return {found[kRepeats / 2], 0, kLaunches, 1.0 * multiprocessors()};
}

// Seconds that the host needs to queue a chain.
Timing queue_row(double) {
  const Buffer<int> count(1);
  cudaStream_t stream;
  cuda_check(cudaStreamCreate(&stream), "creating a stream");
  launch_chain<false>(stream, true, count.data());
  cuda_check(cudaStreamSynchronize(stream), "waiting for kernels");
  const auto before = std::chrono::steady_clock::now();
  launch_chain<false>(stream, true, count.data());
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - before;
  expect(static_cast<float>(count.read()[0]), 2 * kLaunches, "number of launches", 0);
  cudaStreamDestroy(stream);
  return {passed.count(), 0, kLaunches, 0};
}
#endif

// --- the rows

using Row = std::function<Timing(double seconds)>;

template <class Operands, int... kN>
void add_products(std::map<std::string, Row>& rows, const char* operands) {
  ((rows[message("wgmma ", operands, " ", kN)] = wgmma_row<Operands, kN>), ...);
}

const std::map<std::string, Row>& rows() {
  static const std::map<std::string, Row> all = [] {
    std::map<std::string, Row> rows{
        {"l2 128", copy_row<Alone, 128>},
        {"l2 64", copy_row<Alone, 64>},
        {"multicast 128", copy_row<Pair, 128>},
        {"multicast 64", copy_row<Pair, 64>},
        {"mma bf16", mma_row<false>},
        {"mma tf32", mma_row<true>},
        {"ffma", ffma_row},
        {"copy kernel", kernel_copy_row},
        {"update", update_row},
        {"launch small stream plain", launch_row<false, false, false>},
        {"launch small stream early", launch_row<false, true, false>},
        {"launch small graph plain", launch_row<false, false, true>},
        {"launch small graph early", launch_row<false, true, true>},
        {"launch large stream plain", launch_row<true, false, false>},
        {"launch large stream early", launch_row<true, true, false>},
        {"launch large graph plain", launch_row<true, false, true>},
        {"launch large graph early", launch_row<true, true, true>},
#ifndef CONVNET_EMU
        {"copy driver", driver_copy_row},
        {"launch host", queue_row},
#endif
    };
    add_products<Forward, 8, 16, 32, 48, 64, 96, 128, 192, 256>(rows, "forward");
    add_products<BackwardData, 48, 64, 96, 128, 192, 256>(rows, "backward data");
    add_products<BackwardFilter, 48, 64, 96, 128, 144, 192, 240, 256>(rows, "backward filter");
    add_products<Registers, 48, 64, 96, 128, 192, 256>(rows, "registers");
    return rows;
  }();
  return all;
}

}  // namespace
}  // namespace convnet

// Runs a row on CUDA device `device` for about `seconds` and writes seconds, clocks, work and multiprocessors to `measured`.
// 0: done; 1: failed, `error` says how; 2: this build has no such row.
extern "C" int machine_run(
    const char* row, int device, double seconds, double* measured, char* error, int size) {
  try {
    const auto found = convnet::rows().find(row);
    if (found == convnet::rows().end()) {
#ifdef CONVNET_EMU
      const char* where = "the emulator";
#else
      const char* where = "machine.cu";
#endif
      std::snprintf(error, static_cast<std::size_t>(size), "not in %s", where);
      return 2;
    }
#ifdef CONVNET_EMU
    (void)device;
#else
    convnet::cuda_check(cudaSetDevice(device), "choosing the device");
#endif
    const convnet::Timing timing = found->second(seconds);
    measured[0] = timing.seconds;
    measured[1] = timing.clocks;
    measured[2] = timing.work;
    measured[3] = timing.multiprocessors;
    return 0;
  } catch (const std::exception& failure) {
    std::snprintf(error, static_cast<std::size_t>(size), "%s", failure.what());
    return 1;
  }
}
