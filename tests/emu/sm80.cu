// Small kernels of one instruction each, and faulty ones, for tests/kernels/test_emu_sm80.py: sm80 NAME [seed] [OS threads]
// [architecture], with 32-bit words in hexadecimal on the standard input. Prints the words that the kernel computed, or
// "error: " and what the emulator says. Arrays have exactly the size that is needed, so that AddressSanitizer sees every
// access outside.
#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "arch/arch.cuh"

namespace convnet {
namespace {

using Word = uint32_t;
constexpr int kThreads = 64;
constexpr int kSharedWords = 1024;

struct alignas(16) Shared {
  Word word[kSharedWords];
};

__device__ char* at(int byte) {
  return reinterpret_cast<char*>(shared_storage<Shared>().word) + byte;
}

// --- numbers

// Words in, per word: to_bf16, its value again, round_tf32, and packed with the next word as the upper half.
__global__ void convert_kernel(const Word* in, Word* out) {
  begin_kernel();
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int count = static_cast<int>(gridDim.x * blockDim.x);
  const float x = std::bit_cast<float>(in[i]);
  const float next = std::bit_cast<float>(in[(i + 1) % count]);
  out[4 * i] = to_bf16(x).bits;
  out[4 * i + 1] = std::bit_cast<Word>(to_float(to_bf16(x)));
  out[4 * i + 2] = std::bit_cast<Word>(round_tf32(x));
  out[4 * i + 3] = pack_bf16(x, next);
}

// --- tensor cores

// Per thread: sums, fragments of a, fragments of b in; sums out.
template <bool kTf32, int M, int N>
__global__ void mma_kernel(const Word* in, Word* out) {
  begin_kernel();
  float sum[M][N][4];
  Word a[M][4], b[N][2];
  const Word* mine = in + threadIdx.x * (M * N * 4 + M * 4 + N * 2);
  std::memcpy(sum, mine, sizeof sum);
  std::memcpy(a, mine + M * N * 4, sizeof a);
  std::memcpy(b, mine + M * N * 4 + M * 4, sizeof b);
  if constexpr (kTf32)
    mma_tf32(sum, a, b);
  else
    mma_bf16(sum, a, b);
  std::memcpy(out + threadIdx.x * M * N * 4, sum, sizeof sum);
}

__global__ void mma_by_half_a_warp_kernel(const Word*, Word*) {
  begin_kernel();
  float sum[1][1][4] = {};
  const Word a[1][4] = {}, b[1][2] = {};
  if (threadIdx.x % 32 < 16) mma_bf16(sum, a, b);
}

// --- matrices of 8 x 8

// Two rows (bytes of shared memory) per thread, then the words of shared memory in; eight registers per thread out.
template <bool kTransposed>
__global__ void load_kernel(const Word* in, Word* out) {
  begin_kernel();
  Shared& shared = shared_storage<Shared>();
  for (int i = static_cast<int>(threadIdx.x); i < kSharedWords; i += kThreads)
    shared.word[i] = in[2 * kThreads + i];
  __syncthreads();
  Word r[2][4];
  const void* const rows[2] = {at(static_cast<int>(in[2 * threadIdx.x])),
                               at(static_cast<int>(in[2 * threadIdx.x + 1]))};
  if constexpr (kTransposed)
    load_matrices_transposed(r, rows);
  else
    load_matrices(r, rows);
  std::memcpy(out + threadIdx.x * 8, r, sizeof r);
}

// A row and four registers per thread in; the words of shared memory out.
__global__ void store_kernel(const Word* in, Word* out) {
  begin_kernel();
  const Word* mine = in + 5 * threadIdx.x;
  const Word r[4] = {mine[1], mine[2], mine[3], mine[4]};
  store_matrices_transposed(at(static_cast<int>(mine[0])), r);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kSharedWords; i += kThreads)
    out[i] = shared_storage<Shared>().word[i];
}

// Every lane writes a row that another one passes to load_matrices.
template <bool kWait>
__global__ void load_neighbours_kernel(const Word*, Word* out) {
  begin_kernel();
  const int number = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 4; ++i) shared_storage<Shared>().word[4 * number + i] = 0x10001;
  if (kWait) __syncwarp();
  Word r[1][4];
  const void* const rows[1] = {at(16 * (number ^ 1))};
  load_matrices(r, rows);
  for (int i = 0; i < 4; ++i) out[4 * number + i] = r[0][i];
}

// Every lane reads a row that another one stored.
template <bool kWait>
__global__ void store_for_neighbours_kernel(const Word*, Word* out) {
  begin_kernel();
  const int number = static_cast<int>(threadIdx.x);
  const Word r[4] = {0x10001, 0x10001, 0x10001, 0x10001};
  store_matrices_transposed(at(16 * number), r);
  if (kWait) __syncwarp();
  for (int i = 0; i < 4; ++i)
    out[4 * number + i] = shared_storage<Shared>().word[4 * (number ^ 1) + i];
}

// Faulty rows: `byte` of shared memory.
template <bool kStore>
__global__ void row_kernel(const Word*, Word*, int byte) {
  begin_kernel();
  Word r[1][4] = {};
  void* const row = at(byte);
  const void* const rows[1] = {row};
  if (kStore)
    store_matrices_transposed(row, r[0]);
  else
    load_matrices(r, rows);
}

// --- asynchronous copies

// Per thread: whether the source exists, and `bytes` of it in; what each thread finds of its neighbour out.
template <int kBytes>
__global__ void copy_kernel(const Word* in, Word* out) {
  begin_kernel();
  constexpr int kWords = kBytes / 4;
  const int mine = static_cast<int>(threadIdx.x), other = mine ^ 33;
  const bool exists = in[mine] != 0;
  // An address that cannot be read
  const void* source = exists ? in + kThreads + mine * kWords : reinterpret_cast<const Word*>(4096);
  copy_async<kBytes>(at(mine * kBytes), source, exists);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < kWords; ++i)
    out[mine * kWords + i] = shared_storage<Shared>().word[other * kWords + i];
}

// What the words of three groups (one word, none, two words) and of a copy outside of any are, before and after each wait.
__global__ void groups_kernel(const Word* in, Word* out) {
  begin_kernel();
  Shared& shared = shared_storage<Shared>();
  for (int i = 0; i < 4; ++i) shared.word[i] = 7;
  auto look = [&, time = 0]() mutable {
    for (int i = 0; i < 4; ++i) out[20 * blockIdx.x + 4 * time + i] = shared.word[i];
    ++time;
  };
  copy_async<4>(&shared.word[0], in, true);
  copy_async_commit();
  copy_async_commit();
  copy_async<4>(&shared.word[1], in + 1, true);
  copy_async<4>(&shared.word[2], in + 2, true);
  copy_async_commit();
  copy_async<4>(&shared.word[3], in + 3, true);
  look();
  copy_async_wait<2>();
  look();
  copy_async_wait<1>();
  look();
  copy_async_wait<0>();
  look();
  copy_async_commit();
  copy_async_wait<0>();
  look();
  for (int i = 0; i < 3; ++i) copy_async_commit();  // nothing is in them
}

// Each thread adds up what its opposite number copied, over tiles that pass through a ring of three stages. Groups are
// closed where there is nothing left to copy, too, so that counting them stays the same.
enum class Without { nothing, barrier, wait };
template <Without kWithout>
__global__ void ring_kernel(const Word* in, Word* out) {
  begin_kernel();
  constexpr int kStages = 3, kTiles = 8;
  const int mine = static_cast<int>(threadIdx.x);
  const auto fetch = [&](int tile) {
    if (tile < kTiles)
      copy_async<4>(at(4 * (tile % kStages * kThreads + mine)), in + tile * kThreads + mine, true);
    copy_async_commit();
  };
  for (int tile = 0; tile < kStages - 1; ++tile) fetch(tile);
  Word sum = 0;
  for (int tile = 0; tile < kTiles; ++tile) {
    copy_async_wait<kWithout == Without::wait ? kStages - 1 : kStages - 2>();
    if (kWithout != Without::barrier) __syncthreads();
    fetch(tile + kStages - 1);
    sum += shared_storage<Shared>().word[tile % kStages * kThreads + kThreads - 1 - mine];
  }
  out[blockIdx.x * kThreads + mine] = sum;
  copy_async_wait<0>();
}

// Faulty copies: `from` bytes into `in`, to `byte` of shared memory.
template <int kBytes>
__global__ void address_kernel(const Word* in, Word*, int from, int byte) {
  begin_kernel();
  copy_async<kBytes>(at(byte), reinterpret_cast<const char*>(in) + from, true);
  copy_async_commit();
  copy_async_wait<0>();
}

__global__ void from_shared_kernel(const Word*, Word*) {
  begin_kernel();
  copy_async<16>(at(0), at(64), true);
  copy_async_commit();
  copy_async_wait<0>();
}

// The same bytes twice: by two threads, or by one, at once or after having landed.
__global__ void overlap_kernel(const Word* in, Word*) {
  begin_kernel();
  copy_async<4>(at(static_cast<int>(threadIdx.x) / 2 * 4), in, true);
  copy_async_commit();
  __syncthreads();
  copy_async_wait<0>();
}

template <bool kLanded>
__global__ void twice_kernel(const Word* in, Word* out) {
  begin_kernel();
  copy_async<16>(at(16), in, true);
  copy_async_commit();
  if (kLanded) copy_async_wait<0>();
  copy_async<4>(at(28), in, true);
  copy_async_commit();
  copy_async_wait<0>();
  for (int i = 0; i < 4; ++i) out[i] = shared_storage<Shared>().word[4 + i];
}

__global__ void written_kernel(const Word* in, Word*) {
  begin_kernel();
  copy_async<16>(at(16), in, true);
  copy_async_commit();
  *at(31) = 1;
  copy_async_wait<0>();
}

__global__ void source_written_kernel(const Word* in, Word*) {
  begin_kernel();
  copy_async<16>(at(16), in, true);
  copy_async_commit();
  const_cast<Word*>(in)[3] = 1;
  copy_async_wait<0>();
}

template <bool kCommit, int kLeft>
__global__ void left_kernel(const Word* in, Word*) {
  begin_kernel();
  copy_async<16>(at(16), in, true);
  if (kCommit) copy_async_commit();
  copy_async_wait<kLeft>();
}

// --- for tensor copies to read

enum class Writer { matrix_store, copy };
template <Writer kWriter, bool kFence>
__global__ void written_for_tensor_copy_kernel(const Word* in,
                                               const __grid_constant__ TensorMap map) {
  begin_kernel();
  const int mine = static_cast<int>(threadIdx.x);
  if (mine == 0) prefetch(map);
  __syncthreads();
  if constexpr (kWriter == Writer::matrix_store) {
    const Word r[4] = {0x10001, 0x10001, 0x10001, 0x10001};
    store_matrices_transposed(at(16 * mine), r);
  } else {
    copy_async<16>(at(16 * mine), in, true);
    copy_async_commit();
    copy_async_wait<0>();
  }
  if (kFence) fence_async_proxy();
  __syncthreads();
  if (mine == 0) {
    tma_store(map, at(0), 0, 0, 0, 0, 0);
    bulk_commit();
    bulk_wait<0>();
  }
}

// --- running them

std::vector<Word> input;

template <class... Arguments>
void run(void (*kernel)(const Word*, Word*, Arguments...),
         int count,
         Dim3 grid,
         Dim3 block,
         Arguments... arguments) {
  const std::unique_ptr<Word[]> in(new Word[input.size()]);
  std::copy(input.begin(), input.end(), in.get());
  const std::unique_ptr<Word[]> out(new Word[count]);
  launch(kernel, grid, block, sizeof(Shared), nullptr, in.get(), out.get(), arguments...);
  for (int i = 0; i < count; ++i) std::printf("%x\n", out[i]);
}

template <Writer kWriter, bool kFence>
void run_tensor_copy() {
  constexpr int kWords = 4 * 32;
  constexpr int64_t kRow = sizeof(Word) * kWords;
  const std::vector<Word> in(4, 0x10001);
  std::vector<Word> out(kWords);
  const TensorMap map = tensor_map("out", Element::float32, out.data(), {kWords, 1, 1, 1, 1},
                                   {kRow, kRow, kRow, kRow}, {kWords, 1, 1, 1, 1}, Swizzle::none);
  launch(written_for_tensor_copy_kernel<kWriter, kFence>, Dim3(1), Dim3(32), sizeof(Shared),
         nullptr, in.data(), map);
  for (const Word word : out) std::printf("%x\n", word);
}

const std::map<std::string, std::function<void()>>& scenarios() {
  const Dim3 one(1), block(kThreads), warp(32);
  constexpr int kEnd = sizeof(Shared);
  static const std::map<std::string, std::function<void()>> all{
      {"convert",
       [=] {
         const auto count = static_cast<unsigned>(input.size());
         run(convert_kernel, static_cast<int>(4 * count), Dim3(count / kThreads), block);
       }},
      {"mma_bf16", [=] { run(mma_kernel<false, 2, 3>, 24 * kThreads, one, block); }},
      {"mma_bf16_1x1", [=] { run(mma_kernel<false, 1, 1>, 4 * kThreads, one, block); }},
      {"mma_tf32", [=] { run(mma_kernel<true, 2, 3>, 24 * kThreads, one, block); }},
      {"mma_tf32_1x1", [=] { run(mma_kernel<true, 1, 1>, 4 * kThreads, one, block); }},
      {"mma_by_half_a_warp", [=] { run(mma_by_half_a_warp_kernel, 1, one, block); }},
      {"load", [=] { run(load_kernel<false>, 8 * kThreads, one, block); }},
      {"load_transposed", [=] { run(load_kernel<true>, 8 * kThreads, one, block); }},
      {"store_transposed", [=] { run(store_kernel, kSharedWords, one, block); }},
      {"load_neighbours", [=] { run(load_neighbours_kernel<true>, 4 * kThreads, one, block); }},
      {"load_neighbours_at_once",
       [=] { run(load_neighbours_kernel<false>, 4 * kThreads, one, block); }},
      {"store_for_neighbours",
       [=] { run(store_for_neighbours_kernel<true>, 4 * kThreads, one, block); }},
      {"store_for_neighbours_at_once",
       [=] { run(store_for_neighbours_kernel<false>, 4 * kThreads, one, block); }},
      {"load_unaligned", [=] { run(row_kernel<false>, 1, one, warp, 8); }},
      {"load_behind", [=] { run(row_kernel<false>, 1, one, warp, kEnd); }},
      {"load_in_front", [=] { run(row_kernel<false>, 1, one, warp, -16); }},
      {"store_unaligned", [=] { run(row_kernel<true>, 1, one, warp, 8); }},
      {"store_behind", [=] { run(row_kernel<true>, 1, one, warp, kEnd); }},
      {"copy_4", [=] { run(copy_kernel<4>, kThreads, one, block); }},
      {"copy_8", [=] { run(copy_kernel<8>, 2 * kThreads, one, block); }},
      {"copy_16", [=] { run(copy_kernel<16>, 4 * kThreads, one, block); }},
      {"groups", [=] { run(groups_kernel, 3 * 20, Dim3(3), one); }},
      {"ring", [=] { run(ring_kernel<Without::nothing>, 5 * kThreads, Dim3(5), block); }},
      {"ring_without_barrier", [=] { run(ring_kernel<Without::barrier>, kThreads, one, block); }},
      {"ring_without_wait", [=] { run(ring_kernel<Without::wait>, kThreads, one, block); }},
      {"target_unaligned_16", [=] { run(address_kernel<16>, 1, one, one, 0, 8); }},
      {"target_unaligned_8", [=] { run(address_kernel<8>, 1, one, one, 0, 4); }},
      {"target_unaligned_4", [=] { run(address_kernel<4>, 1, one, one, 0, 2); }},
      {"source_unaligned_16", [=] { run(address_kernel<16>, 1, one, one, 8, 0); }},
      {"source_unaligned_8", [=] { run(address_kernel<8>, 1, one, one, 4, 0); }},
      {"source_unaligned_4", [=] { run(address_kernel<4>, 1, one, one, 2, 0); }},
      {"target_behind", [=] { run(address_kernel<16>, 1, one, one, 0, kEnd); }},
      {"target_in_front", [=] { run(address_kernel<16>, 1, one, one, 0, -16); }},
      {"source_behind", [=] { run(address_kernel<16>, 1, one, one, 16, 0); }},
      {"source_in_front", [=] { run(address_kernel<16>, 1, one, one, -16, 0); }},
      {"source_shared", [=] { run(from_shared_kernel, 1, one, one); }},
      {"overlap", [=] { run(overlap_kernel, 1, one, block); }},
      {"twice_at_once", [=] { run(twice_kernel<false>, 4, one, one); }},
      {"twice", [=] { run(twice_kernel<true>, 4, one, one); }},
      {"written", [=] { run(written_kernel, 1, one, one); }},
      {"source_written", [=] { run(source_written_kernel, 1, one, one); }},
      {"matrices_for_tensor_copy", run_tensor_copy<Writer::matrix_store, true>},
      {"matrices_for_tensor_copy_unfenced", run_tensor_copy<Writer::matrix_store, false>},
      {"copies_for_tensor_copy", run_tensor_copy<Writer::copy, true>},
      {"copies_for_tensor_copy_unfenced", run_tensor_copy<Writer::copy, false>},
      {"never_committed", [=] { run(left_kernel<false, 0>, 1, one, one); }},
      {"never_waited_for", [=] { run(left_kernel<true, 1>, 1, one, one); }},
  };
  return all;
}

}  // namespace
}  // namespace convnet

int main(int count, char** arguments) {
  if (count < 2 || !convnet::scenarios().contains(arguments[1])) return 2;
  if (count > 2) convnet::emu::seed_order(std::strtoull(arguments[2], nullptr, 10));
  if (count > 3) convnet::emu::set_threads(std::atoi(arguments[3]));
  if (count > 4) convnet::emu::set_architecture(std::atoi(arguments[4]));
  for (convnet::Word word; std::scanf("%x", &word) == 1;) convnet::input.push_back(word);
  try {
    convnet::scenarios().at(arguments[1])();
  } catch (const std::exception& error) {
    std::printf("error: %s\n", error.what());
  }
}
