// Programs for tests/kernels/test_emu_sm90.py. All data is binary, from stdin and to stdout, so that the tests compute what is expected
// by themselves. On an error "error: " and what the emulator says goes to stdout instead.
//
//   sm90 script SEED THREADS SHARED_BYTES BLOCKS CLUSTER   runs a list of operations, see Script
//   sm90 wgmma SEED N ta tb STEPS a-operand b-operand      products of what lies in shared memory; an operand is "start lbo sbo
//                                           swizzle advance"
//   sm90 registers SEED N tb b-operand      the same with the first operand in registers
//   sm90 tf32 SEED N b-operand              the same in tf32
//   sm90 load|store SEED element(0 bf16, 1 float32) sizes[5] strides[4] box[5] swizzle coordinates[5] offset tensor_bytes
//   sm90 pipeline SEED MISTAKE M N K
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "pipeline.cuh"

namespace convnet {
namespace {

using Bytes = std::vector<unsigned char>;

Bytes read_all() {
  Bytes all;
  unsigned char part[4096];
  for (std::size_t count; (count = std::fread(part, 1, sizeof part, stdin)) > 0;)
    all.insert(all.end(), part, part + count);
  return all;
}

void write_all(const void* data, std::size_t bytes) { std::fwrite(data, 1, bytes, stdout); }

int next_number(char**& arguments) { return std::atoi(*arguments++); }

// An array as devices give them.
struct Memory {
  std::size_t bytes;
  unsigned char* data;
  explicit Memory(std::size_t bytes)
      : bytes(bytes),
        data(static_cast<unsigned char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))) {}
  ~Memory() { std::free(data); }
};

// --- lists of operations

// "WHO OPERATION NUMBERS..." per line; WHO is *, a thread or a range like 0-31, of block 1 with 1: in front. The tensor is [8 rows][64 columns] of bf16 with
// the values 0, 1, 2, ...; boxes are all of it with 128-byte swizzle. Barriers lie at the end of shared memory.
struct Operation {
  int block;  // -1: all
  int first, last;
  std::string name;
  int x, y, z;
};

struct Script {
  TensorMap map;
  std::vector<Operation> operations;
};

const Script* script;
std::mutex seen_mutex;
std::map<std::pair<std::size_t, unsigned>, std::string> seen;  // by operation and thread

void see(std::size_t at, const std::string& text) {
  const std::lock_guard lock(seen_mutex);
  seen[{at, blockIdx.x * blockDim.x + threadIdx.x}] = text;
}

__global__ void script_kernel(const __grid_constant__ TensorMap map, int shared_bytes) {
  begin_kernel();
  unsigned char* shared = &shared_storage<unsigned char>();
  Barrier* barriers = reinterpret_cast<Barrier*>(shared + shared_bytes) - 8;
  float sum[32], other[32];
  uint32_t a[4] = {};
  Barrier outside;
  for (int i = 0; i < 32; ++i) sum[i] = other[i] = 1.0f;
  for (std::size_t at = 0; at < script->operations.size(); ++at) {
    const auto& [block, first, last, name, x, y, z] = script->operations[at];
    const int thread = static_cast<int>(threadIdx.x);
    if (block >= 0 && block != static_cast<int>(blockIdx.x)) continue;
    if (thread < first || thread > last) continue;
    const auto is = [&](const char* word) { return name == word; };
    const auto see_number = [&](float value) { see(at, value != value ? "nan" : message(value)); };
    const auto see_bf16 = [&](const void* place) {
      bf16 value;
      std::memcpy(&value, place, 2);
      see_number(to_float(value));
    };
    if (is("sync")) __syncthreads();
    if (is("syncwarp")) __syncwarp();
    if (is("named")) named_barrier(x, y);
    if (is("cluster_sync")) cluster_sync();
    if (is("cluster_sync_elsewhere")) cluster_sync();
    if (is("rank")) see(at, message(cluster_rank()));
    if (is("arrive_at")) barrier_arrive_at(barriers[x], y);
    if (is("multicast"))
      tma_load_multicast(shared + x, map, barriers[y], static_cast<uint16_t>(z), 0, 0, 0, 0, 0);
    if (is("peek")) {
      const float4 value = load4_cluster(reinterpret_cast<const float*>(shared + x), y);
      see_number(value.x);
    }
    if (is("float")) *reinterpret_cast<float*>(shared + x) = static_cast<float>(y);
    if (is("end")) return;
    if (is("init")) barrier_init(barriers[x], y);
    if (is("init_at")) barrier_init(*reinterpret_cast<Barrier*>(shared + x), y);
    if (is("init_outside")) barrier_init(outside, y);
    if (is("fence_init")) fence_barrier_init();
    if (is("expect")) barrier_expect(barriers[x], y);
    if (is("arrive")) barrier_arrive(barriers[x]);
    if (is("wait")) barrier_wait(barriers[x], y), see(at, "passed");
    if (is("smash")) barriers[x].state = 1;
    if (is("load")) tma_load(shared + x, map, barriers[y], 0, z, 0, 0, 0);
    if (is("store")) tma_store(map, shared + x, 0, y, 0, 0, 0);
    if (is("bad_map")) tma_store(TensorMap{}, shared, 0, 0, 0, 0, 0);
    if (is("prefetch")) prefetch(map);
    if (is("commit")) bulk_commit();
    if (is("wait_read")) x == 0 ? bulk_wait_read<0>() : bulk_wait_read<1>();
    if (is("wait_written")) x == 0 ? bulk_wait<0>() : bulk_wait<1>();
    if (is("write")) shared[x] = static_cast<unsigned char>(y);
    if (is("fill")) std::memset(shared + x, z, static_cast<std::size_t>(y));
    if (is("noted")) emu::note_shared_write(shared + x, static_cast<std::size_t>(y));
    if (is("proxy")) fence_async_proxy();
    if (is("see")) see_bf16(shared + x);
    if (is("see_tensor")) see_bf16(static_cast<const bf16*>(map.address) + x);
    if (is("elect")) see(at, message(elect_one()));
    if (is("raise")) x == 240 ? raise_registers<240>() : raise_registers<160>();
    if (is("lower")) x == 24 ? lower_registers<24>() : lower_registers<248>();
    // products of 64 x 64 without swizzle: a at byte x, b at byte y
    const auto plain = [&](int start) { return operand(shared + start, 128, 256, Swizzle::none); };
    if (is("mma")) wgmma<64, false, false>(sum, plain(x), plain(y));
    if (is("mma_other")) wgmma<64, false, false>(other, plain(x), plain(y));
    if (is("mma_part"))
      wgmma<32, false, false>(*reinterpret_cast<float (*)[16]>(sum), plain(x), plain(y));
    if (is("mma_registers")) wgmma<64, false>(sum, a, plain(y));
    if (is("mma_tf32")) wgmma_tf32<64>(sum, a, plain(y));
    if (is("mma_bits")) wgmma<64, false, false>(sum, plain(x) | uint64_t{1} << y, plain(0));
    if (is("mma_128"))
      wgmma<64, false, false>(sum, operand(shared + x, 16, y, Swizzle::bytes128), plain(0));
    if (is("mma_128_t"))
      wgmma<64, true, false>(sum, operand(shared + x, y, z, Swizzle::bytes128), plain(0));
    if (is("mma_b_128_t"))
      wgmma<64, false, true>(sum, plain(0), operand(shared + x, y, z, Swizzle::bytes128));
    if (is("operand")) operand(shared + x, y, z, Swizzle::none);
    if (is("advance")) advance(plain(x), y);
    if (is("wfence")) wgmma_fence();
    if (is("wcommit")) wgmma_commit();
    if (is("wwait")) x == 0 ? wgmma_wait<0>() : wgmma_wait<1>();
    if (is("hold")) hold(sum);
    if (is("touch")) sum[x] += 1.0f;
    if (is("touch_a")) a[x] += 1;
    if (is("see_sum")) see_number(sum[x]);
    if (is("see_other")) see_number(other[x]);
  }
}

TensorMap ramp_map(Memory& tensor) {
  for (int i = 0; i < 512; ++i)
    reinterpret_cast<bf16*>(tensor.data)[i] = to_bf16(static_cast<float>(i % 256));
  return tensor_map("tensor", Element::bf16, tensor.data, {64, 8, 1, 1, 1}, {128, 1024, 1024, 1024},
                    {64, 8, 1, 1, 1}, Swizzle::bytes128);
}

void run_script(char** arguments) {
  const int threads = next_number(arguments), bytes = next_number(arguments);
  const int blocks = next_number(arguments), cluster = next_number(arguments);
  Memory tensor(1024);
  Script mine{ramp_map(tensor), {}};
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string who;
    Operation operation{-1, 0, threads - 1, "", 0, 0, 0};
    words >> who >> operation.name >> operation.x >> operation.y >> operation.z;
    if (const auto colon = who.find(':'); colon != who.npos) {
      operation.block = std::atoi(who.c_str());
      who = who.substr(colon + 1);
    }
    if (who != "*") {
      operation.first = operation.last = std::atoi(who.c_str());
      if (const auto dash = who.find('-'); dash != who.npos)
        operation.last = std::atoi(who.c_str() + dash + 1);
    }
    mine.operations.push_back(operation);
  }
  script = &mine;
  launch(script_kernel, Grid(Dim3(static_cast<unsigned>(blocks)), static_cast<unsigned>(cluster)),
         Dim3(static_cast<unsigned>(threads)), static_cast<std::size_t>(bytes), nullptr, mine.map,
         bytes);
  for (const auto& [key, text] : seen)
    std::printf("%zu %u %s\n", key.first, key.second, text.c_str());
}

// --- products

struct OperandArguments {
  int start, lbo, sbo, swizzle, step;
};

OperandArguments next_operand(char**& arguments) {
  OperandArguments x;
  for (int* field : {&x.start, &x.lbo, &x.sbo, &x.swizzle, &x.step})
    *field = next_number(arguments);
  return x;
}

enum class First { in_shared, in_registers, tf32_in_registers };

// `data` is shared memory and then the sums, [128][N / 2]; the sums are overwritten.
template <int N, bool kTransposeA, bool kTransposeB, First kFirst>
__global__ void product_kernel(
    unsigned char* data, int shared_bytes, int steps, OperandArguments a, OperandArguments b) {
  begin_kernel();
  unsigned char* shared = &shared_storage<unsigned char>();
  for (int i = threadIdx.x; i < shared_bytes; i += 128) shared[i] = data[i];
  fence_async_proxy();
  __syncthreads();
  float* values = reinterpret_cast<float*>(data + shared_bytes) + threadIdx.x * (N / 2);
  const uint32_t* registers =
      reinterpret_cast<const uint32_t*>(data + shared_bytes) + 128 * (N / 2) + threadIdx.x * 4;
  float sum[N / 2];
  for (int i = 0; i < N / 2; ++i) sum[i] = values[i];
  uint32_t fragment[4] = {};
  if (kFirst != First::in_shared)
    for (int i = 0; i < 4; ++i) fragment[i] = registers[i];
  const uint64_t b_operand =
      operand(shared + b.start, b.lbo, b.sbo, static_cast<Swizzle>(b.swizzle));
  hold(sum);
  wgmma_fence();
  if constexpr (kFirst == First::tf32_in_registers) {
    wgmma_tf32<N>(sum, fragment, b_operand);
  } else if constexpr (kFirst == First::in_registers) {
    wgmma<N, kTransposeB>(sum, fragment, b_operand);
  } else {
    const uint64_t a_operand =
        operand(shared + a.start, a.lbo, a.sbo, static_cast<Swizzle>(a.swizzle));
    for (int k = 0; k < steps; ++k)
      wgmma<N, kTransposeA, kTransposeB>(sum, advance(a_operand, k * a.step),
                                         advance(b_operand, k * b.step));
  }
  wgmma_commit();
  wgmma_wait<0>();
  hold(sum);
  for (int i = 0; i < N / 2; ++i) values[i] = sum[i];
}

template <bool kTransposeA, bool kTransposeB, First kFirst>
void run_product(int N, int steps, OperandArguments a, OperandArguments b) {
  Bytes data = read_all();
  const std::size_t sums = static_cast<std::size_t>(128 * N / 2 * 4);
  const int bytes = static_cast<int>(data.size() - sums - (kFirst == First::in_shared ? 0 : 2048));
  const auto run = [&](auto kernel) {
    launch(kernel, Dim3(1), Dim3(128), static_cast<std::size_t>(bytes), nullptr, data.data(), bytes,
           steps, a, b);
  };
  switch (N) {
    case 8:
      run(product_kernel<8, kTransposeA, kTransposeB, kFirst>);
      break;
    case 40:
      run(product_kernel<40, kTransposeA, kTransposeB, kFirst>);
      break;
    case 64:
      run(product_kernel<64, kTransposeA, kTransposeB, kFirst>);
      break;
    case 192:
      run(product_kernel<192, kTransposeA, kTransposeB, kFirst>);
      break;
    default:
      run(product_kernel<256, kTransposeA, kTransposeB, kFirst>);
      break;
  }
  write_all(data.data() + bytes, sums);
}

void products(char** arguments, First first) {
  const int N = next_number(arguments);
  if (first == First::tf32_in_registers)
    return run_product<false, false, First::tf32_in_registers>(N, 1, {}, next_operand(arguments));
  if (first == First::in_registers) {
    const int tb = next_number(arguments);
    const OperandArguments b = next_operand(arguments);
    tb ? run_product<false, true, First::in_registers>(N, 1, {}, b)
       : run_product<false, false, First::in_registers>(N, 1, {}, b);
    return;
  }
  const int ta = next_number(arguments), tb = next_number(arguments),
            steps = next_number(arguments);
  const OperandArguments a = next_operand(arguments), b = next_operand(arguments);
  if (ta)
    tb ? run_product<true, true, First::in_shared>(N, steps, a, b)
       : run_product<true, false, First::in_shared>(N, steps, a, b);
  else
    tb ? run_product<false, true, First::in_shared>(N, steps, a, b)
       : run_product<false, false, First::in_shared>(N, steps, a, b);
}

// --- copies

__global__ void copy_kernel(const __grid_constant__ TensorMap map,
                            unsigned char* data,
                            int bytes,
                            int offset,
                            emu::TensorCoordinates at,
                            bool load) {
  begin_kernel();
  unsigned char* shared = &shared_storage<unsigned char>();
  Barrier& barrier = *reinterpret_cast<Barrier*>(shared + bytes);
  if (load) {
    int box = map.element == Element::bf16 ? 2 : 4;
    for (int size : map.box) box *= size;
    barrier_init(barrier, 1);
    fence_barrier_init();
    tma_load(shared + offset, map, barrier, at[0], at[1], at[2], at[3], at[4]);
    barrier_expect(barrier, box);
    barrier_wait(barrier, 0);
    std::memcpy(data, shared, static_cast<std::size_t>(bytes));
  } else {
    std::memcpy(shared, data, static_cast<std::size_t>(bytes));
    fence_async_proxy();
    tma_store(map, shared + offset, at[0], at[1], at[2], at[3], at[4]);
    bulk_commit();
    bulk_wait<0>();
  }
}

// stdin: the tensor, and for a store what is in shared memory; stdout: what a load left there, or the tensor.
void copies(char** arguments, bool load) {
  const Element element = next_number(arguments) == 0 ? Element::bf16 : Element::float32;
  int64_t sizes[5], strides[4];
  int box[5];
  for (int64_t& x : sizes) x = std::atoll(*arguments++);
  for (int64_t& x : strides) x = std::atoll(*arguments++);
  for (int& x : box) x = next_number(arguments);
  const auto swizzle = static_cast<Swizzle>(next_number(arguments));
  emu::TensorCoordinates at;
  for (int& x : at) x = next_number(arguments);
  const int offset = next_number(arguments);
  const auto tensor_bytes = static_cast<std::size_t>(next_number(arguments));
  const Bytes in = read_all();
  Memory tensor(tensor_bytes);
  std::memcpy(tensor.data, in.data(), tensor_bytes);
  constexpr int kBytes = 32768;
  Bytes shared(kBytes, 0);
  if (!load) std::memcpy(shared.data(), in.data() + tensor_bytes, kBytes);
  const TensorMap map = tensor_map("x", element, tensor.data, sizes, strides, box, swizzle);
  launch(copy_kernel, Dim3(1), Dim3(1), kBytes + 8, nullptr, map, shared.data(), kBytes, offset, at,
         load);
  load ? write_all(shared.data(), kBytes) : write_all(tensor.data, tensor_bytes);
}

// --- the pipeline

void run_pipeline(char** arguments) {
  const auto mistake = static_cast<Mistake>(next_number(arguments));
  const int M = next_number(arguments), N = next_number(arguments), K = next_number(arguments);
  const auto count = [](int x, int y) {
    return static_cast<std::size_t>(x) * static_cast<std::size_t>(y);
  };
  const Bytes in = read_all();
  Memory a(2 * count(M, K)), b(2 * count(K, N)), c(2 * count(M, N));
  std::memcpy(a.data, in.data(), a.bytes);
  std::memcpy(b.data, in.data() + a.bytes, b.bytes);
  std::memset(c.data, 0xff, c.bytes);
  void (*const runs[])(const bf16*, const bf16*, const bf16*, int, int, int) = {
      pipeline<Mistake::none>,          pipeline<Mistake::no_full_wait>,
      pipeline<Mistake::no_empty_wait>, pipeline<Mistake::released_too_early>,
      pipeline<Mistake::no_fence>,      pipeline<Mistake::read_too_early>,
      pipeline<Mistake::missing_bytes>, pipeline<Mistake::one_release>,
      pipeline<Mistake::no_store_wait>, pipeline<Mistake::source_changed>};
  const auto values = [](const Memory& x) { return reinterpret_cast<const bf16*>(x.data); };
  runs[static_cast<int>(mistake)](values(a), values(b), values(c), M, N, K);
  write_all(c.data, c.bytes);
}

// --- launches that are only checked

__global__ void fill_kernel(float* x) {
  begin_kernel();
  *x = 1;
}

void only_check() {
  float x = 0;
  only_checking() = true;
  const auto attempt = [&] {
    try {
      launch(fill_kernel, Dim3(1), Dim3(1), 0, nullptr, &x);
      std::printf("nothing refused, x = %g\n", x);
    } catch (const std::runtime_error& error) {
      std::printf("%s\n", error.what());
    }
  };
  attempt();
  refuse("x: refused");
  const int64_t sizes[kTensorRank]{64, 48, 57, 1, 2}, strides[]{128, 6144, 16, 350208};
  const int box[kTensorRank]{64, 16, 15, 1, 1};
  refuse("y: " + describe_tensor_map(Element::bf16, reinterpret_cast<void*>(0x1000), sizes, strides,
                                     box, Swizzle::bytes128));
  attempt();
  attempt();
  only_checking() = false;
  attempt();
  refuse("z: refused");
}

}  // namespace
}  // namespace convnet

int main(int count, char** arguments) {
  if (count < 3) return 2;
  const std::string mode = arguments[1];
  convnet::emu::seed_order(std::strtoull(arguments[2], nullptr, 10));
  char** rest = arguments + 3;
  try {
    if (mode == "script") convnet::run_script(rest);
    if (mode == "script_80") convnet::emu::set_architecture(80), convnet::run_script(rest);
    if (mode == "wgmma") convnet::products(rest, convnet::First::in_shared);
    if (mode == "registers") convnet::products(rest, convnet::First::in_registers);
    if (mode == "tf32") convnet::products(rest, convnet::First::tf32_in_registers);
    if (mode == "load") convnet::copies(rest, true);
    if (mode == "store") convnet::copies(rest, false);
    if (mode == "pipeline") convnet::run_pipeline(rest);
    if (mode == "only_check") convnet::only_check();
  } catch (const std::exception& error) {
    std::printf("error: %s\n", error.what());
  }
}
