// Small kernels, most of them faulty, for tests/kernels/test_emu.py: scenarios NAME [seed] [OS threads]. Prints what the kernel
// computed, or "error: " and what the emulator says. Arrays have exactly the size that is needed, so that AddressSanitizer
// sees every access outside.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "arch/arch.cuh"

namespace convnet {
namespace {

constexpr int kThreads = 64;

struct Values {
  float value[kThreads];
};

// --- shared memory and barriers

template <bool kBarrier>
__global__ void reverse_kernel(float* x) {
  begin_kernel();
  Values& shared = shared_storage<Values>();
  float* mine = x + int64_t{blockIdx.x} * kThreads + threadIdx.x;
  shared.value[threadIdx.x] = *mine;
  if (kBarrier) __syncthreads();
  *mine = shared.value[kThreads - 1 - threadIdx.x];
}

__global__ void half_warp_barrier_kernel(float*) {
  begin_kernel();
  if (threadIdx.x % 32 < 16) __syncthreads();
}

__global__ void half_warp_sum_kernel(float* x) {
  begin_kernel();
  if (threadIdx.x % 32 < 16)
    __syncthreads();
  else
    x[threadIdx.x] = warp_sum(1.0f);
}

__global__ void two_barriers_kernel(float*) {
  begin_kernel();
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void a_warp_leaves_kernel(float* x) {
  begin_kernel();
  if (threadIdx.x >= 32) return;
  Values& shared = shared_storage<Values>();
  shared.value[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = shared.value[31 - threadIdx.x];
}

__global__ void shared_access_kernel(float* x, int offset, bool write) {
  begin_kernel();
  Values& shared = shared_storage<Values>();
  shared.value[threadIdx.x] = 0.0f;
  __syncthreads();
  float* place = shared.value + threadIdx.x + offset;
  if (write)
    *place += 1.0f;
  else
    x[threadIdx.x] = *place;
}

// What a block leaves behind must not serve the next one.
__global__ void uninitialised_kernel(float* x) {
  begin_kernel();
  float& place = shared_storage<Values>().value[threadIdx.x];
  x[threadIdx.x] = place;
  place = 1.0f;
}

// --- warps

__global__ void warp_kernel(float* x) {
  begin_kernel();
  const float v = x[threadIdx.x];
  x[threadIdx.x] = warp_sum(v);
  x[blockDim.x + threadIdx.x] = warp_max(v);
  x[2 * blockDim.x + threadIdx.x] = warp_shuffle_xor(v, 5);
  x[3 * blockDim.x + threadIdx.x] = static_cast<float>(warp_sum(static_cast<int>(threadIdx.x)));
}

__global__ void two_warp_sums_kernel(float* x) {
  begin_kernel();
  if (threadIdx.x % 2 == 0)
    x[threadIdx.x] = warp_sum(1.0f);
  else
    x[threadIdx.x] = warp_sum(2.0f);
}

__global__ void a_lane_leaves_kernel(float* x) {
  begin_kernel();
  if (threadIdx.x == 35) return;
  x[threadIdx.x] = warp_sum(1.0f);
}

// A lane hands a value to its neighbour; without the wait it would have to be a barrier of the block.
template <bool kWait>
__global__ void neighbour_kernel(float* x) {
  begin_kernel();
  Values& shared = shared_storage<Values>();
  shared.value[threadIdx.x] = x[threadIdx.x];
  if (kWait) __syncwarp();
  x[threadIdx.x] = shared.value[threadIdx.x ^ 1];
}

// --- global memory, stacks, launches

__global__ void global_access_kernel(float* x, int offset, bool write) {
  begin_kernel();
  float* place = x + threadIdx.x + offset;
  if (write)
    *place = 1.0f;
  else
    x[threadIdx.x] = *place;
}

__global__ void unaligned_kernel(float* x) {
  begin_kernel();
  store4(x, load4(x + 1));
}

__global__ void never_begun_kernel(float* x) { x[threadIdx.x] = 1.0f; }

template <bool kAsync>
__global__ void too_early_kernel(float* x) {
  Values& shared = shared_storage<Values>();
  if (kAsync)
    copy_async<4>(&shared.value[0], x, true);
  else
    store4(x, load4(x));
  begin_kernel();
}

int overflow(int depth) {
  volatile char frame[256];
  frame[0] = static_cast<char>(depth);
  return depth < 0 ? 0 : overflow(depth + 1) + frame[0];
}

__global__ void overflow_kernel(float* x) {
  begin_kernel();
  x[0] = static_cast<float>(overflow(0));
}

__global__ void nested_kernel(float* x) {
  begin_kernel();
  launch(uninitialised_kernel, Dim3(1), Dim3(1), 0, nullptr, x);
}

std::mutex log_mutex;
std::vector<std::string> visits;

__global__ void visit_kernel() {
  begin_kernel();
  const std::lock_guard lock(log_mutex);
  visits.push_back(message(blockIdx.x, " ", blockIdx.y, " ", blockIdx.z, " ", threadIdx.x, " ",
                           threadIdx.y, " ", threadIdx.z, " of ", gridDim.x, " ", gridDim.y, " ",
                           gridDim.z, " ", blockDim.x, " ", blockDim.y, " ", blockDim.z));
}

// --- running them

template <class... Arguments>
void run(void (*kernel)(float*, Arguments...),
         int count,
         Dim3 grid,
         Dim3 block,
         Arguments... arguments) {
  const std::unique_ptr<float[]> x(new float[count]);
  for (int i = 0; i < count; ++i) x[i] = static_cast<float>(i * 37 % 101) / 7.0f;
  launch(kernel, grid, block, sizeof(Values), nullptr, x.get(), arguments...);
  for (int i = 0; i < count; ++i) std::printf("%.9g\n", x[i]);
}

void visit() {
  launch(visit_kernel, Dim3(3, 2, 4), Dim3(5, 3, 2), 0, nullptr);
  for (const std::string& line : visits) std::puts(line.c_str());
}

// Launches from several OS threads at once do not disturb each other.
void at_once() {
  std::vector<std::jthread> callers;
  std::vector<float> x(4 * 32 * kThreads);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([&x, i] {
      for (int times = 0; times < 9; ++times)  // an odd number
        launch(reverse_kernel<true>, Dim3(32), Dim3(kThreads), sizeof(Values), nullptr,
               &x[i * 32 * kThreads]);
    });
  callers.clear();
  for (const float value : x) std::printf("%.9g\n", value);
}

void guarded(const std::function<void()>& scenario) {
  try {
    scenario();
  } catch (const std::exception& error) {
    std::printf("error: %s\n", error.what());
  }
}

const std::map<std::string, std::function<void()>>& scenarios() {
  const Dim3 one(1), block(kThreads);
  static const std::map<std::string, std::function<void()>> all{
      {"reverse", [=] { run(reverse_kernel<true>, 200 * kThreads, Dim3(200), block); }},
      {"reverse_without_barrier", [=] { run(reverse_kernel<false>, kThreads, one, block); }},
      {"half_warp_barrier", [=] { run(half_warp_barrier_kernel, kThreads, one, block); }},
      {"half_warp_sum", [=] { run(half_warp_sum_kernel, kThreads, one, block); }},
      {"two_barriers", [=] { run(two_barriers_kernel, kThreads, one, block); }},
      {"a_warp_leaves", [=] { run(a_warp_leaves_kernel, kThreads, one, block); }},
      {"shared_inside", [=] { run(shared_access_kernel, kThreads, one, block, 0, true); }},
      {"shared_read_behind", [=] { run(shared_access_kernel, kThreads, one, block, 1, false); }},
      {"shared_write_behind", [=] { run(shared_access_kernel, kThreads, one, block, 1, true); }},
      {"shared_write_in_front", [=] { run(shared_access_kernel, kThreads, one, block, -1, true); }},
      {"shared_too_small",
       [=] { launch(uninitialised_kernel, one, block, sizeof(Values) - 1, nullptr, nullptr); }},
      {"uninitialised", [=] { run(uninitialised_kernel, kThreads, Dim3(3), block); }},
      {"warp", [=] { run(warp_kernel, 4 * kThreads, one, block); }},
      {"warp_of_16", [=] { run(warp_kernel, 4 * 48, one, Dim3(48)); }},
      {"two_warp_sums", [=] { run(two_warp_sums_kernel, kThreads, one, block); }},
      {"a_lane_leaves", [=] { run(a_lane_leaves_kernel, kThreads, one, block); }},
      {"neighbour", [=] { run(neighbour_kernel<true>, kThreads, one, block); }},
      {"neighbour_without_wait", [=] { run(neighbour_kernel<false>, kThreads, one, block); }},
      {"global_inside", [=] { run(global_access_kernel, kThreads, one, block, 0, true); }},
      {"global_read_behind", [=] { run(global_access_kernel, kThreads, one, block, 1, false); }},
      {"global_write_behind", [=] { run(global_access_kernel, kThreads, one, block, 1, true); }},
      {"global_write_in_front", [=] { run(global_access_kernel, kThreads, one, block, -1, true); }},
      {"unaligned", [=] { run(unaligned_kernel, kThreads, one, one); }},
      {"never_begun", [=] { run(never_begun_kernel, kThreads, one, block); }},
      {"too_early", [=] { run(too_early_kernel<false>, kThreads, one, one); }},
      {"too_early_copy", [=] { run(too_early_kernel<true>, kThreads, one, one); }},
      {"overflow", [=] { run(overflow_kernel, 1, one, one); }},
      {"nested", [=] { run(nested_kernel, 1, one, one); }},
      {"no_threads", [=] { run(uninitialised_kernel, 1, one, Dim3(0)); }},
      {"too_many_threads", [=] { run(uninitialised_kernel, 1, one, Dim3(32, 33)); }},
      {"too_many_blocks", [=] { run(uninitialised_kernel, 1, Dim3(1, 65536), one); }},
      {"too_much_shared",
       [=] { launch(uninitialised_kernel, one, one, 232449, nullptr, nullptr); }},
      {"visit", visit},
      {"at_once", at_once},
      {"after_errors",
       [=] {
         guarded([=] { run(half_warp_sum_kernel, kThreads, one, block); });
         guarded([=] { run(two_barriers_kernel, kThreads, Dim3(100), block); });
         run(reverse_kernel<true>, 200 * kThreads, Dim3(200), block);
       }},
  };
  return all;
}

}  // namespace
}  // namespace convnet

int main(int count, char** arguments) {
  if (count < 2 || !convnet::scenarios().contains(arguments[1])) return 2;
  if (count > 2) convnet::emu::seed_order(std::strtoull(arguments[2], nullptr, 10));
  if (count > 3) convnet::emu::set_threads(std::atoi(arguments[3]));
  convnet::guarded(convnet::scenarios().at(arguments[1]));
}
