// Small kernels whose accesses and barriers can be counted by hand, for tests/kernels/test_glass.py: glass NAME. Compiled with
// -fsanitize=thread, so that they tell of every load and store (emu/glass.hpp). Prints what was counted, a line for each
// instruction, call, barrier and fill.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "arch/arch.cuh"

namespace convnet {
namespace {

constexpr int kThreads = 64;

int thread() { return static_cast<int>(threadIdx.x); }

// --- shared memory

constexpr int kTile = 32;

template <int kPitch>
struct Tile {
  float value[kTile][kPitch];
};

// Rows in, columns out, by one warp.
template <int kPitch>
__global__ void transpose_kernel(const float* x, float* y) {
  begin_kernel();
  auto& tile = shared_storage<Tile<kPitch>>();
  for (int row = 0; row < kTile; ++row) tile.value[row][thread()] = x[row * kTile + thread()];
  __syncthreads();
  for (int column = 0; column < kTile; ++column)
    y[column * kTile + thread()] = tile.value[thread()][column];
}

// Every lane reads `T`s of 4 values, which begin `kStep` bytes apart.
template <class T, int kStep, int kLanes = 32>
__global__ void quads_kernel(const float*, float* y) {
  begin_kernel();
  auto* bytes = &shared_storage<unsigned char>();
  for (int i = thread(); i < 1024; i += 32) reinterpret_cast<float*>(bytes)[i] = 1.0f;
  __syncthreads();
  float sum = 0.0f;
  if (thread() < kLanes) sum = load4(reinterpret_cast<const T*>(bytes + thread() * kStep)).x;
  y[thread()] = sum;
}

// Lane l reads l % 4 + 1 words, the one after the other, and behind a barrier as many as are left of five.
__global__ void uneven_kernel(const float*, float* y) {
  begin_kernel();
  auto& tile = shared_storage<Tile<32>>();
  for (int row = 0; row < 4; ++row) tile.value[row][thread()] = 1.0f;
  __syncthreads();
  float sum = 0.0f;
  for (int round = 0; round < 2; ++round) {
    const int words = round == 0 ? thread() % 4 + 1 : 4 - thread() % 4;
    for (int row = 0; row < words; ++row) sum += tile.value[row][thread()];
    __syncwarp();
  }
  y[thread()] = sum;
}

// --- global memory

// y[i] = x[i * step + offset]
template <int kStep, int kOffset>
__global__ void strided_kernel(const float* x, float* y) {
  begin_kernel();
  y[thread()] = x[thread() * kStep + kOffset];
}

// --- barriers and the ring

struct Stages {
  float value[3][kThreads];
};

// Five fillings of three stages, each read behind a barrier.
__global__ void ring_kernel(const float* x, float* y) {
  begin_kernel();
  auto& stages = shared_storage<Stages>();
  constexpr int kFills = 5, kAhead = 2;
  float sum = 0.0f;
  for (int i = -kAhead; i < kFills; ++i) {
    if (i >= 0) {
      copy_async_wait<1>();
      __syncthreads();
    }
    const int next = i + kAhead;
    if (next < kFills)
      copy_async<4>(&stages.value[next % 3][thread()], x + next * kThreads + thread(), true);
    copy_async_commit();
    if (i >= 0) sum += stages.value[i % 3][kThreads - 1 - thread()];
  }
  y[thread()] = sum;
}

struct Letter {
  Barrier full, empty;
  float value;
};

// Warp 1 gives warp 0 three numbers, one after the other.
__global__ void mail_kernel(const float* x, float* y) {
  begin_kernel();
  auto& letter = shared_storage<Letter>();
  if (thread() == 0) {
    barrier_init(letter.full, 1);
    barrier_init(letter.empty, 32);
    fence_barrier_init();
  }
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < 3; ++i) {
    if (thread() == 32) {
      if (i > 0) barrier_wait(letter.empty, (i - 1) % 2);
      letter.value = x[i];
      barrier_arrive(letter.full);
    } else if (thread() < 32) {
      barrier_wait(letter.full, i % 2);
      sum += letter.value;
      barrier_arrive(letter.empty);
    }
  }
  if (thread() < 32) named_barrier(1, 32);
  y[thread()] = sum;
}

// --- what is printed

using Kernel = void (*)(const float*, float*);

void print(const emu::Use& use, const char* first) {
  std::printf("%s %s %llu %lld", first, use.operation.c_str(),
              static_cast<unsigned long long>(use.count), static_cast<long long>(use.bytes));
  for (std::size_t i = 0; i < use.threads.size(); ++i)
    if (use.threads[i]) std::printf(" %zu", i);
  std::puts("");
}

void run(Kernel kernel, int threads, std::size_t shared_bytes, int blocks = 1) {
  // As large as what is read and written, and each at the beginning of a sector.
  alignas(32) static float x[kTile * kTile], y[kTile * kTile];
  emu::watch({{reinterpret_cast<unsigned char*>(x), sizeof x},
              {reinterpret_cast<unsigned char*>(y), sizeof y}});
  launch(kernel, Dim3(static_cast<unsigned>(blocks)), Dim3(static_cast<unsigned>(threads)),
         shared_bytes, nullptr, x, y);
  const emu::Watched seen = emu::watched();
  const emu::WatchedLaunch& launched = seen.launches.at(0);
  for (const emu::Accesses& a : launched.accesses) {
    std::printf(
        "access %s %s %d %d %llu %llu %llu %llu %llu %llu %llu",
        a.array < 0    ? "shared"
        : a.array == 0 ? "x"
                       : "y",
        a.operation.c_str(), a.warp, a.bytes, static_cast<unsigned long long>(a.requests),
        static_cast<unsigned long long>(a.asked), static_cast<unsigned long long>(a.used),
        static_cast<unsigned long long>(a.sectors), static_cast<unsigned long long>(a.wavefronts),
        static_cast<unsigned long long>(a.fewest), static_cast<unsigned long long>(a.worst));
    for (const int64_t at : a.worst_at)
      if (a.array < 0) std::printf(" %lld", static_cast<long long>(at));
    std::puts("");
  }
  for (const emu::Call& call : seen.calls)
    std::printf("call %s %llu\n", call.operation.c_str(),
                static_cast<unsigned long long>(call.calls));
  for (const emu::WatchedBarrier& barrier : launched.barriers) {
    std::printf("barrier %s %lld %d %llu\n", barrier.kind.c_str(),
                static_cast<long long>(barrier.at), barrier.arrivals,
                static_cast<unsigned long long>(barrier.phases));
    for (const emu::Use& use : barrier.uses) print(use, "use");
  }
  for (const emu::Fill& fill : launched.fills)
    std::printf("fill %lld %lld %lld %d\n", static_cast<long long>(fill.begin),
                static_cast<long long>(fill.end), static_cast<long long>(fill.bytes),
                fill.issued < fill.landed && fill.landed < fill.first_read &&
                    fill.first_read < fill.last_read);
}

const std::map<std::string, std::function<void()>>& scenarios() {
  static const std::map<std::string, std::function<void()>> all{
      {"pitch_32", [] { run(transpose_kernel<32>, 32, sizeof(Tile<32>)); }},
      {"pitch_33", [] { run(transpose_kernel<33>, 32, sizeof(Tile<33>)); }},
      {"pitch_48", [] { run(transpose_kernel<48>, 32, sizeof(Tile<48>)); }},
      {"pitch_65", [] { run(transpose_kernel<65>, 32, sizeof(Tile<65>)); }},
      {"float4", [] { run(quads_kernel<float, 16>, 32, 4096); }},
      {"float4_apart", [] { run(quads_kernel<float, 32>, 32, 4096); }},
      {"float4_same", [] { run(quads_kernel<float, 0>, 32, 4096); }},
      {"float4_of_9", [] { run(quads_kernel<float, 16, 9>, 32, 4096); }},
      {"bf16x4", [] { run(quads_kernel<bf16, 8>, 32, 4096); }},
      {"bf16x4_apart", [] { run(quads_kernel<bf16, 16>, 32, 4096); }},
      {"uneven", [] { run(uneven_kernel, 32, sizeof(Tile<32>)); }},
      {"dense", [] { run(strided_kernel<1, 0>, 64, 0, 2); }},
      {"strided", [] { run(strided_kernel<8, 0>, 64, 0); }},
      {"shifted", [] { run(strided_kernel<1, 1>, 32, 0); }},
      {"same", [] { run(strided_kernel<0, 5>, 32, 0); }},
      {"ring", [] { run(ring_kernel, kThreads, sizeof(Stages)); }},
      {"mail", [] { run(mail_kernel, kThreads, sizeof(Letter)); }},
  };
  return all;
}

}  // namespace
}  // namespace convnet

int main(int count, char** arguments) {
  if (count < 2 || !convnet::scenarios().contains(arguments[1])) return 2;
  if (count > 2) convnet::emu::seed_order(std::strtoull(arguments[2], nullptr, 10));
  convnet::scenarios().at(arguments[1])();
}
