#include "glass.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <map>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "cluster.hpp"
#include "launch.hpp"

// The linker's name for the first byte of this module.
extern "C" [[gnu::visibility("hidden")]] const char __ehdr_start;

namespace convnet::emu {

constinit bool watching = false;

namespace {

bool recording = false;

// The call that is left out; no line: none.
std::string left_out_file;
unsigned left_out_line = 0, left_out_column = 0;

using Key = std::tuple<uintptr_t, unsigned, unsigned>;  // of a place

Key key_of(const Place& place) {
  return place.code != 0 ? Key{place.code, 0, 0}
                         : Key{reinterpret_cast<uintptr_t>(place.site.file_name()),
                               place.site.line(), place.site.column()};
}

struct HashKey {
  std::size_t operator()(const Key& key) const {
    const auto [code, line, column] = key;
    return (code * 31 + line) * 31 + column;
  }
};

struct Lanes {
  uint32_t mask = 0;
  std::array<int64_t, kWarpLanes> at;
};

// What the lanes of a warp have done at one place since they last met.
struct Sequence {
  std::size_t accesses = 0;                 // which of the launch's
  std::array<uint64_t, kWarpLanes> done{};  // executions by each lane
  uint64_t gone = 0;                        // executions by all lanes, which are counted already
  std::deque<Lanes> open{};
};

// An address and what is accessed there: one place may access several arrays.
struct SequenceKey {
  Key place;
  int array, bytes;
  bool write;
  bool operator==(const SequenceKey&) const = default;
};

struct HashSequence {
  std::size_t operator()(const SequenceKey& key) const {
    return HashKey{}(key.place) * 64 +
           static_cast<std::size_t>(key.array * 40 + key.bytes * 2 + key.write);
  }
};

struct WatchedWarp {
  std::unordered_map<SequenceKey, Sequence, HashSequence> sequences;
};

constexpr int kNoFill = -1;

// All of one watched launch but what is given to whoever looks.
struct State {
  std::vector<WatchedArray> arrays;
  Watched found;
  const Block* first_block = nullptr;  // block 0, while its cluster runs
  uint64_t time = 0;
  const unsigned char* shared = nullptr;
  std::size_t shared_bytes = 0;
  int threads = 0;
  std::vector<WatchedWarp> warps;  // of the blocks of a cluster, one behind the other
  std::map<std::tuple<Key, int, int, int, bool>, std::size_t> index;  // of accesses
  std::vector<int> fill_of_word;     // of shared memory: what was brought there last
  std::vector<std::size_t> commits;  // of each thread
  std::map<std::size_t, int> fill_of_group;
  std::map<std::pair<const void*, uint64_t>, int> fill_of_phase;

  WatchedLaunch& launch() { return found.launches.back(); }
};

State state;

bool watched_thread() { return recording && here != nullptr && !state.found.launches.empty(); }

bool in_first_block() { return watched_thread() && here->block == state.first_block; }

// Shared memory of block 0, which other blocks of its cluster reach too.
bool in_first_block(const void* address) {
  return watched_thread() && state.first_block != nullptr &&
         state.first_block->shared.holds(address, 1);
}

std::size_t watched_warp(const Block& block, int number) {
  const int warps = (state.threads + kWarpLanes - 1) / kWarpLanes;
  return static_cast<std::size_t>(block.rank * warps + number);
}

void set(std::vector<bool>& threads, int number) {
  if (threads.size() < static_cast<std::size_t>(state.threads))
    threads.resize(static_cast<std::size_t>(state.threads));
  threads[static_cast<std::size_t>(number)] = true;
}

// --- Accesses

// The place among the launch's accesses of those that `like` is one of. They stand in the order of their first executions.
std::size_t index_of(const Accesses& like) {
  const auto [entry, is_new] =
      state.index.try_emplace({key_of(like.place), like.array, like.warp, like.bytes, like.write},
                              state.launch().accesses.size());
  if (is_new) state.launch().accesses.push_back(like);
  return entry->second;
}

// Different bytes, and sectors that they lie in.
std::pair<uint64_t, uint64_t> spread(const Lanes& lanes, int bytes) {
  std::vector<int64_t> begins;
  for (std::size_t lane = 0; lane < kWarpLanes; ++lane)
    if (lanes.mask >> lane & 1) begins.push_back(lanes.at[lane]);
  std::sort(begins.begin(), begins.end());
  uint64_t different = 0, sectors = 0;
  int64_t end = begins[0], last_sector = -1;
  for (const int64_t begin : begins) {
    different += static_cast<uint64_t>(std::max<int64_t>(0, begin + bytes - std::max(begin, end)));
    end = std::max(end, begin + bytes);
    for (int64_t sector = std::max(begin / kSectorBytes, last_sector + 1);
         sector <= (begin + bytes - 1) / kSectorBytes; ++sector)
      ++sectors, last_sector = sector;
  }
  return {different, sectors};
}

void count(const Sequence& sequence, const Lanes& lanes) {
  Accesses& found = state.launch().accesses[sequence.accesses];
  const auto [different, sectors] = spread(lanes, found.bytes);
  ++found.requests;
  found.asked +=
      static_cast<uint64_t>(std::popcount(lanes.mask)) * static_cast<uint64_t>(found.bytes);
  found.used += different;
  int64_t at[kWarpLanes];
  for (std::size_t lane = 0; lane < kWarpLanes; ++lane)
    at[lane] = lanes.mask >> lane & 1 ? lanes.at[lane] : -1;
  uint64_t cost = sectors;
  if (found.array < 0) {
    int fewest = 0;
    cost = static_cast<uint64_t>(wavefronts(at, found.bytes, &fewest));
    found.wavefronts += cost;
    found.fewest += static_cast<uint64_t>(fewest);
  } else {
    found.sectors += sectors;
  }
  if (cost > found.worst) {
    found.worst = cost;
    found.worst_at.assign(at, at + kWarpLanes);
  }
}

// Counts all that the lanes of a warp have done: what they do next begins anew.
void close(std::size_t number) {
  WatchedWarp& warp = state.warps[number];
  for (auto& [key, sequence] : warp.sequences) {
    for (const Lanes& lanes : sequence.open) count(sequence, lanes);
    sequence.open.clear();
    sequence.done.fill(0);
    sequence.gone = 0;
  }
}

void access_lane(
    const char* operation, int array, int64_t offset, int bytes, bool write, const Place& place) {
  const Thread& thread = *here;
  WatchedWarp& warp = state.warps[watched_warp(*thread.block, thread.number / kWarpLanes)];
  const auto entry = warp.sequences.try_emplace(SequenceKey{key_of(place), array, bytes, write});
  Sequence& sequence = entry.first->second;
  if (entry.second)
    sequence.accesses = index_of({.operation = operation,
                                  .write = write,
                                  .array = array,
                                  .warp = array < 0 ? thread.number / kWarpLanes : -1,
                                  .bytes = bytes,
                                  .place = place});
  const auto lane = static_cast<std::size_t>(thread.lane);
  const uint64_t execution = sequence.done[lane]++;
  while (sequence.gone + sequence.open.size() <= execution) sequence.open.emplace_back();
  Lanes& lanes = sequence.open[execution - sequence.gone];
  lanes.mask |= 1u << lane;
  lanes.at[lane] = offset;
  while (!sequence.open.empty() && sequence.open.front().mask == ~0u) {
    count(sequence, sequence.open.front());
    sequence.open.pop_front();
    ++sequence.gone;
  }
}

int array_of(const unsigned char* address) {
  for (std::size_t i = 0; i < state.arrays.size(); ++i)
    if (address >= state.arrays[i].begin && address < state.arrays[i].begin + state.arrays[i].bytes)
      return static_cast<int>(i);
  return -1;
}

void access(const char* operation, const void* address, int bytes, bool write, const Place& place) {
  if (!watched_thread()) return;
  const auto* at = static_cast<const unsigned char*>(address);
  if (here->block->shared.holds(at, static_cast<std::size_t>(bytes))) {
    if (!in_first_block()) return;
    access_lane(operation, -1, at - state.shared, bytes, write, place);
    if (!write) watch_shared_read(at, static_cast<std::size_t>(bytes));
  } else if (const int array = array_of(at); array >= 0) {
    access_lane(operation, array, reinterpret_cast<intptr_t>(at), bytes, write, place);
  }
}

// --- Barriers

WatchedBarrier* find_barrier(const void* barrier) {
  const int64_t at = static_cast<const unsigned char*>(barrier) - state.shared;
  for (WatchedBarrier& found : state.launch().barriers)
    if (found.kind == "mbarrier" && found.at == at) return &found;
  return nullptr;
}

void use(WatchedBarrier& barrier, const char* operation, int64_t bytes, int thread, Site site) {
  auto found = std::find_if(barrier.uses.begin(), barrier.uses.end(),
                            [&](const Use& use) { return same(use.site, site); });
  if (found == barrier.uses.end())
    found = barrier.uses.insert(barrier.uses.end(), Use{.operation = operation, .site = site});
  ++found->count;
  found->bytes += bytes;
  set(found->threads, thread);
}

// --- Fills

Fill& touch(int number, const void* target, std::size_t bytes) {
  Fill& fill = state.launch().fills[static_cast<std::size_t>(number)];
  const int64_t begin = static_cast<const unsigned char*>(target) - state.shared;
  const auto end = begin + static_cast<int64_t>(bytes);
  fill.begin = fill.bytes == 0 ? begin : std::min(fill.begin, begin);
  fill.end = fill.bytes == 0 ? end : std::max(fill.end, end);
  fill.bytes += static_cast<int64_t>(bytes);
  std::fill(state.fill_of_word.begin() + begin / 4, state.fill_of_word.begin() + (end + 3) / 4,
            number);
  return fill;
}

int new_fill() {
  state.launch().fills.push_back({.begin = 0, .end = 0, .issued = ++state.time});
  return static_cast<int>(state.launch().fills.size()) - 1;
}

}  // namespace

// --- For whoever looks

void watch(std::vector<WatchedArray> arrays) {
  state = State{};
  state.arrays = std::move(arrays);
  recording = watching = true;
}

Watched watched() {
  recording = false;
  watching = left_out_line > 0;
  return std::exchange(state, State{}).found;
}

void leave_out(const std::string& file, unsigned line, unsigned column) {
  left_out_file = file;
  left_out_line = line;
  left_out_column = column;
  watching = recording || line > 0;
}

int wavefronts(const int64_t (&at)[kWarpLanes], int bytes, int* fewest) {
  const int together = bytes <= 4 ? kWarpLanes : bytes <= 8 ? kWarpLanes / 2 : kWarpLanes / 4;
  int total = 0, passes = 0;
  for (int begin = 0; begin < kWarpLanes; begin += together) {
    std::vector<int64_t> words;
    for (int lane = begin; lane < begin + together; ++lane)
      for (int64_t byte = 0; at[lane] >= 0 && byte < bytes; byte += kBankBytes)
        words.push_back((at[lane] + byte) / kBankBytes);
    if (words.empty()) continue;
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    int of_bank[kBanks] = {};
    for (const int64_t word : words) ++of_bank[word % kBanks];
    total += *std::max_element(of_bank, of_bank + kBanks);
    ++passes;
  }
  if (fewest != nullptr) *fewest = passes;
  return total;
}

// --- For the emulator

bool passes_watched(const char* operation, Site site) {
  if (watched_thread()) {
    std::vector<Call>& calls = state.found.calls;
    auto found = std::find_if(calls.begin(), calls.end(),
                              [&](const Call& call) { return same(call.site, site); });
    if (found == calls.end())
      found =
          calls.insert(calls.end(), {.operation = operation,
                                     .site = site,
                                     .launch = static_cast<int>(state.found.launches.size()) - 1});
    if (in_first_block()) {
      ++found->calls;
      set(found->threads, here->number);
    }
  }
  return left_out_line != site.line() || left_out_column != site.column() ||
         left_out_file != site.file_name();
}

void watch_launch(const Launch& launch) {
  if (!recording) return;
  state.found.launches.push_back({.kernel = "",
                                  .grid = launch.grid,
                                  .block = launch.block,
                                  .cluster = launch.cluster,
                                  .shared_bytes = launch.shared_bytes});
  state.index.clear();
  state.time = 0;
  state.threads = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  const int warps = (state.threads + kWarpLanes - 1) / kWarpLanes;
  state.warps.assign(static_cast<std::size_t>(warps) * launch.cluster, {});
}

void watch_beginning(Site site) {
  if (recording) state.launch().kernel = site.function_name();
}

void watch_block_begin(const Block& block) {
  if (!recording || block.rank > 0) return;
  const bool first = block.index.x == 0 && block.index.y == 0 && block.index.z == 0;
  state.first_block = first ? &block : nullptr;
  state.shared = block.shared.data();
  state.shared_bytes = block.shared.size();
  state.fill_of_word.assign((state.shared_bytes + 3) / 4, kNoFill);
  state.commits.assign(static_cast<std::size_t>(state.threads), 0);
  state.fill_of_group.clear();
  state.fill_of_phase.clear();
}

void watch_block_end(const Block& block) {
  if (recording) watch_meeting_of_block(block);
}

void watch_meeting(const Warp&) {
  if (recording) close(watched_warp(*here->block, here->number / kWarpLanes));
}

void watch_meeting_of_block(const Block& block) {
  if (!recording) return;
  for (std::size_t warp = watched_warp(block, 0);
       warp <
       watched_warp(block, 0) + state.warps.size() / static_cast<std::size_t>(block.cluster.size());
       ++warp)
    close(warp);
}

void watch_named_barrier(int id, int threads, bool complete, Site site) {
  if (!in_first_block()) return;
  std::vector<WatchedBarrier>& barriers = state.launch().barriers;
  auto found = std::find_if(barriers.begin(), barriers.end(), [&](const WatchedBarrier& barrier) {
    return barrier.kind == "named_barrier" && barrier.at == id;
  });
  if (found == barriers.end())
    found =
        barriers.insert(barriers.end(), {.kind = "named_barrier", .at = id, .arrivals = threads});
  use(*found, "named_barrier", 0, here->number, site);
  found->phases += complete;
}

void watch_barrier_init(const void* barrier, int arrivals) {
  if (!in_first_block()) return;
  state.launch().barriers.push_back(
      {.kind = "mbarrier",
       .at = static_cast<const unsigned char*>(barrier) - state.shared,
       .arrivals = arrivals});
}

void watch_barrier(const void* barrier, const char* operation, int64_t bytes, Site site) {
  if (!in_first_block(barrier)) return;
  if (WatchedBarrier* found = find_barrier(barrier))
    use(*found, operation, bytes, here->number, site);
}

void watch_phase(const void* barrier) {
  if (!in_first_block(barrier)) return;
  if (WatchedBarrier* found = find_barrier(barrier)) ++found->phases;
  // The copies of a phase have landed when it is complete. It is the one before that which the barrier is in now.
  for (const auto& [key, number] : state.fill_of_phase)
    if (Fill& fill = state.launch().fills[static_cast<std::size_t>(number)];
        key.first == barrier && fill.landed == 0)
      fill.landed = ++state.time;
}

void watch_access(const char* operation, const void* address, int bytes, bool write, Site site) {
  access(operation, address, bytes, write, {.code = 0, .site = site});
}

void watch_copy(const void* target, const void* source, int bytes, bool exists, Site site) {
  if (!watched_thread()) return;
  if (exists)
    if (const int array = array_of(static_cast<const unsigned char*>(source)); array >= 0)
      access_lane("copy_async", array, reinterpret_cast<intptr_t>(source), bytes, false,
                  {.code = 0, .site = site});
  if (!in_first_block()) return;
  access_lane("copy_async", -1, static_cast<const unsigned char*>(target) - state.shared, bytes,
              true, {.code = 0, .site = site});
  const auto [entry, is_new] = state.fill_of_group.try_emplace(
      state.commits[static_cast<std::size_t>(here->number)], kNoFill);
  if (is_new) entry->second = new_fill();
  touch(entry->second, target, static_cast<std::size_t>(bytes));
}

void watch_commit() {
  if (in_first_block()) ++state.commits[static_cast<std::size_t>(here->number)];
}

void watch_landed(const void* target) {
  if (!in_first_block(target)) return;
  const auto word =
      static_cast<std::size_t>(static_cast<const unsigned char*>(target) - state.shared) / 4;
  if (const int number = state.fill_of_word[word]; number != kNoFill)
    state.launch().fills[static_cast<std::size_t>(number)].landed = ++state.time;
}

void watch_tensor_load(const void* target,
                       std::size_t bytes,
                       const void* barrier,
                       uint64_t phase,
                       const char* operation,
                       Site site) {
  if (!in_first_block(target)) return;
  watch_barrier(barrier, operation, static_cast<int64_t>(bytes), site);
  const auto [entry, is_new] = state.fill_of_phase.try_emplace({barrier, phase}, kNoFill);
  if (is_new) entry->second = new_fill();
  touch(entry->second, target, bytes);
}

// A row of a tensor copy, which no warp takes part in.
void watch_row(const void* global, std::size_t bytes, bool write, Site site) {
  if (!recording) return;
  const auto* at = static_cast<const unsigned char*>(global);
  const int array = array_of(at);
  if (array < 0) return;
  Accesses& found = state.launch().accesses[index_of({.operation = write ? "tma_store" : "tma_load",
                                                      .write = write,
                                                      .array = array,
                                                      .warp = -1,
                                                      .bytes = static_cast<int>(bytes),
                                                      .place = {.code = 0, .site = site}})];
  const auto begin = reinterpret_cast<uintptr_t>(at);
  const uint64_t sectors = (begin + bytes - 1) / kSectorBytes - begin / kSectorBytes + 1;
  ++found.requests;
  found.asked += bytes;
  found.used += bytes;
  found.sectors += sectors;
  found.worst = std::max(found.worst, sectors);
}

void watch_shared_read(const void* address, std::size_t bytes) {
  if (!in_first_block(address)) return;
  const auto begin =
      static_cast<std::size_t>(static_cast<const unsigned char*>(address) - state.shared);
  for (std::size_t word = begin / 4; word < (begin + bytes + 3) / 4; ++word)
    if (const int number = state.fill_of_word[word]; number != kNoFill) {
      Fill& fill = state.launch().fills[static_cast<std::size_t>(number)];
      ++state.time;
      if (fill.first_read == 0) fill.first_read = state.time;
      fill.last_read = state.time;
    }
}

namespace {

// Larger ones come in parts of 16 bytes, as a GPU has none larger.
void traced(const void* address, std::size_t bytes, bool write, const void* code) {
  if (!recording) [[likely]]
    return;
  const auto* at = static_cast<const unsigned char*>(address);
  // The call is in front of where it returns to.
  const uintptr_t place =
      reinterpret_cast<uintptr_t>(code) - 1 - reinterpret_cast<uintptr_t>(&__ehdr_start);
  for (std::size_t part = 0; part < bytes;) {
    const std::size_t size = std::bit_floor(std::min<std::size_t>(bytes - part, 16));
    access(write ? "store" : "load", at + part, static_cast<int>(size), write,
           {.code = place, .site = {}});
    part += size;
  }
}

}  // namespace

}  // namespace convnet::emu

// --- What compilers call for each load and store in sources that were compiled with -fsanitize=thread

#ifndef __SANITIZE_THREAD__  // the sanitizer itself
#define CONVNET_TRACED(bytes)                                                 \
  void __tsan_read##bytes(void* address) {                                    \
    convnet::emu::traced(address, bytes, false, __builtin_return_address(0)); \
  }                                                                           \
  void __tsan_write##bytes(void* address) {                                   \
    convnet::emu::traced(address, bytes, true, __builtin_return_address(0));  \
  }                                                                           \
  void __tsan_unaligned_read##bytes(void* address) {                          \
    convnet::emu::traced(address, bytes, false, __builtin_return_address(0)); \
  }                                                                           \
  void __tsan_unaligned_write##bytes(void* address) {                         \
    convnet::emu::traced(address, bytes, true, __builtin_return_address(0));  \
  }

extern "C" {
CONVNET_TRACED(1)
CONVNET_TRACED(2)
CONVNET_TRACED(4)
CONVNET_TRACED(8)
CONVNET_TRACED(16)
void __tsan_read_range(void* address, unsigned long bytes) {
  convnet::emu::traced(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, unsigned long bytes) {
  convnet::emu::traced(address, bytes, true, __builtin_return_address(0));
}
// A word that says which class an object is of, and where functions and the program begin: no memory of a kernel.
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
// Clang has these instead of the functions of the standard library.
void* __tsan_memcpy(void* target, const void* source, unsigned long bytes) {
  convnet::emu::traced(source, bytes, false, __builtin_return_address(0));
  convnet::emu::traced(target, bytes, true, __builtin_return_address(0));
  return std::memcpy(target, source, bytes);
}
void* __tsan_memmove(void* target, const void* source, unsigned long bytes) {
  convnet::emu::traced(source, bytes, false, __builtin_return_address(0));
  convnet::emu::traced(target, bytes, true, __builtin_return_address(0));
  return std::memmove(target, source, bytes);
}
void* __tsan_memset(void* target, int value, unsigned long bytes) {
  convnet::emu::traced(target, bytes, true, __builtin_return_address(0));
  return std::memset(target, value, bytes);
}
// Guards of variables that are made when they are first needed.
unsigned char __tsan_atomic8_load(const volatile unsigned char* address, int) {
  return __atomic_load_n(address, __ATOMIC_ACQUIRE);
}
}
#endif
