// The kernel under glass: what a launch does, counted while it runs. `convnet-info --emulate` shows it.
//
// Loads and stores come from the compiler: sources compiled with -fsanitize=thread call a function of ours for each, with its
// address, in front of it (glass.cpp; no sanitizer's library takes part). Those that lie in the block's shared memory or in
// one of the arrays are counted; the rest are what a GPU keeps in registers. What the emulator itself does for a kernel,
// barriers and copies that run on their own, it tells. The module _glass is made of such sources, _emu is not.
//
// Lanes run one after the other here. An instruction of a warp is put together from them again: the n-th time that each lane
// comes to one place in the code since the warp, or the block, last met.
#pragma once
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

#include "block.hpp"

namespace convnet::emu {

// A launch is watched, or a call is left out of it. Changes only while no kernel runs.
extern constinit bool watching;

// --- What was counted

// Where an access is: an address in the code, from the beginning of the module's file, or a place in the source where `site` says one (line > 0).
struct Place {
  uintptr_t code = 0;
  Site site;
};

inline constexpr int kBanks = 32, kBankBytes = 4, kSectorBytes = 32;

// All executions of one instruction, by the warp `warp` of block 0 in shared memory, by all warps in global memory.
struct Accesses {
  std::string operation;  // load, store, copy_async, tma_load, tma_store, ldmatrix, stmatrix
  bool write;
  int array;  // which of the watched ones; -1: shared memory
  int warp;   // -1: all
  int bytes;  // of a lane
  Place place;
  uint64_t requests = 0;  // executions by a warp, or rows of a tensor copy
  uint64_t asked = 0;     // bytes, of all lanes together
  uint64_t used = 0;      // bytes of those that differ, within a request
  uint64_t sectors = 0;   // of 32 bytes (global memory)
  uint64_t wavefronts = 0,
           fewest = 0;  // passes through the banks, and how many without conflicts (shared memory)
  // The first of the executions with the most wavefronts, or sectors: the offset of every lane, -1 where it took no part.
  uint64_t worst = 0;
  std::vector<int64_t> worst_at{};
};

// A call that orders something, at one place of the source.
struct Call {
  std::string operation;
  Site site;
  int launch;                   // where it was reached first
  uint64_t calls = 0;           // by threads of block 0
  std::vector<bool> threads{};  // those that called
};

// How one call takes part in a barrier.
struct Use {
  std::string operation;
  Site site;
  uint64_t count = 0;
  int64_t bytes = 0;  // announced, or brought by a copy
  std::vector<bool> threads{};
};

// A barrier of block 0 that threads know by a name: an mbarrier, or a named barrier.
struct WatchedBarrier {
  std::string kind;
  int64_t at;    // byte of shared memory, or the id
  int arrivals;  // that a phase takes
  uint64_t phases = 0;
  std::vector<Use> uses{};
};

// What copies brought into shared memory together: a group of cp.async, of the same number in all threads, or the tensor
// copies of one phase of a barrier. Times are numbers of events; 0: never.
struct Fill {
  int64_t begin, end;  // bytes of shared memory that it lies between
  int64_t bytes = 0;
  uint64_t issued, landed = 0, first_read = 0, last_read = 0;
};

struct WatchedLaunch {
  std::string kernel;  // its signature
  Index grid, block;
  unsigned cluster;
  std::size_t shared_bytes;
  std::vector<Accesses> accesses{};
  std::vector<WatchedBarrier> barriers{};
  std::vector<Fill> fills{};
};

struct Watched {
  std::vector<WatchedLaunch> launches;
  std::vector<Call> calls;  // in the order in which they were reached
};

// An array in global memory.
struct WatchedArray {
  const unsigned char* begin;
  std::size_t bytes;
};

// --- For whoever looks

// From now on launches are watched, block after block, until watched() gives what was counted.
void watch(std::vector<WatchedArray> arrays);
Watched watched();
// The call at this place of the source does nothing from now on; line 0: all calls do what they should.
void leave_out(const std::string& file, unsigned line, unsigned column);
// How often a warp goes through the banks for lanes that access `bytes` each: at once up to 4, by halves of the warp for 8,
// by quarters for 16. at[lane] is negative where the lane takes no part. `fewest`: as often as without conflicts.
int wavefronts(const int64_t (&at)[kWarpLanes], int bytes, int* fewest = nullptr);

// --- For the emulator

bool passes_watched(const char* operation, Site site);
// Whether a call that orders something is to do it. In front of all else that such a call does.
inline bool passes(const char* operation, Site site) {
  return !watching || passes_watched(operation, site);
}

void watch_launch(const Launch& launch);
void watch_beginning(Site site);
void watch_block_begin(const Block& block);
void watch_block_end(const Block& block);
void watch_meeting(const Warp& warp);             // its lanes have met
void watch_meeting_of_block(const Block& block);  // all threads have met
void watch_named_barrier(int id, int threads, bool complete, Site site);
void watch_barrier_init(const void* barrier, int arrivals);
void watch_barrier(const void* barrier, const char* operation, int64_t bytes, Site site);
void watch_phase(const void* barrier);
void watch_access(const char* operation, const void* address, int bytes, bool write, Site site);
void watch_copy(const void* target, const void* source, int bytes, bool exists, Site site);
void watch_commit();
void watch_landed(const void* target);
void watch_tensor_load(const void* target,
                       std::size_t bytes,
                       const void* barrier,
                       uint64_t phase,
                       const char* operation,
                       Site site);
void watch_row(const void* global, std::size_t bytes, bool write, Site site);
void watch_shared_read(const void* address, std::size_t bytes);

}  // namespace convnet::emu
