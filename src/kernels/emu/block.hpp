// A launch, its blocks and their threads. Kernels see of this what emu.hpp makes of it; cluster.hpp runs the threads.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "pending_copies.hpp"
#include "shared_memory.hpp"

namespace convnet::emu {

using Site = std::source_location;  // where in the kernel's source an operation was called

struct Index {
  unsigned x, y, z;
};

// One kernel launch, shared by the OS threads that run its blocks.
struct Launch {
  Index grid, block;
  unsigned cluster;  // blocks of one, neighbours along x
  std::size_t shared_bytes;
  Site site;
  void (*body)(const void* context);  // calls the kernel with its arguments
  const void* context;

  uint64_t seed = 0;      // of the orders of clusters and threads
  uint64_t clusters = 0;  // in the grid, below 2^32
  uint64_t step = 1;      // from cluster to cluster; shares no factor with `clusters`
  std::atomic<uint64_t> taken{0};
  std::atomic<bool> failed{false};
};

inline constexpr int kWarpLanes = 32;
// The most that a lane can bring to a meeting of its warp.
inline constexpr std::size_t kLaneBytes = 16;

struct Warp {
  uint64_t meetings;  // finished ones; lanes wait for it to change
  int arrived, size, ended;
  Site site;  // where the first lane called
  alignas(16) unsigned char in[kWarpLanes][kLaneBytes], out[kWarpLanes][kLaneBytes];
};

// Words for threads that wait for nothing (1 != 0) and that have ended (0 == 0); `seen` is 0 in both.
inline constexpr uint64_t kNothing = 1;
inline constexpr uint64_t kForEver = 0;

class Block;
class Cluster;
class Fiber;
class Sm90;

// A barrier of some threads of the block.
struct NamedBarrier {
  uint64_t meetings = 0;
  int arrived = 0, threads = 0;
  Site site;  // where the first thread called
  std::vector<int> arrived_of_warp;
};

inline constexpr int kNamedBarriers = 16;  // number 0 is __syncthreads

struct Thread {
  Index index;
  int number;  // in the block, x first
  int lane;
  Block* block;
  Warp* warp;
  const uint64_t* word;  // goes on when *word != seen
  uint64_t seen;
  Fiber* fiber;  // none yet: not started
  bool begun;    // called begin_kernel()
  const char* waits_for;
  Site site;

  bool ready() const { return *word != seen; }
  bool ended() const { return word == &kForEver; }
};

// The CUDA thread that this OS thread runs now, nullptr outside kernels. initial-exec: one load instead of a function call,
// also in a shared library.
[[gnu::tls_model("initial-exec")]] extern constinit thread_local Thread* here;

class Block {
 public:
  Index grid, extent, index;  // gridDim, blockDim, blockIdx
  SharedMemory shared;
  PendingCopies copies;
  Cluster& cluster;
  const int rank;  // in the cluster

  Block(Cluster& cluster, int rank);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void prepare(const Launch& launch);
  void start(uint64_t number);  // of the block in the grid
  void end_thread(Thread& thread);

  // Called by the running thread, `here`.
  void barrier(Site site);
  void check_meeting(const Warp& warp, const char* operation, Site site);
  void named_barrier(int id, int threads, Site site);

  // What goes on in this block besides its threads. Fails on a machine without these instructions.
  Sm90& sm90(const char* operation, Site site);
  Sm90* sm90_in_use() const { return sm90_used_ ? sm90_.get() : nullptr; }

  Warp& warp(std::size_t number) { return warps_[number]; }
  int size() const { return static_cast<int>(extent.x * extent.y * extent.z); }
  bool ended() const { return live_ == 0; }
  bool has_torn_warps() const { return torn_warps_ > 0; }
  uint64_t meetings() const { return meetings_; }
  void count_meeting() { ++meetings_; }
  // " of block 1 of the cluster", nothing where a cluster is one block.
  std::string of_cluster() const;

 private:
  void release_barrier();

  std::vector<Warp> warps_;
  int live_ = 0;           // threads
  int arrived_ = 0;        // at the barrier
  uint64_t barriers_ = 0;  // finished ones
  int torn_warps_ = 0;     // some lanes have ended, others not
  Site barrier_site_;
  uint64_t meetings_ = 0;  // of more than a warp: barriers of every kind that were passed
  NamedBarrier named_[kNamedBarriers];
  std::unique_ptr<Sm90> sm90_;
  bool sm90_used_ = false;  // in this block
};

// Throws std::runtime_error; in a kernel it ends the launch, and launch() throws it again.
[[noreturn]] void fail(const std::string& text);
// Where a kernel that is noted (launch.hpp) begins: ends the launch.
[[noreturn]] void note_beginning(Site site);
// For accesses to global memory that do not wait for the kernels before.
[[noreturn]] void fail_too_early(Site site);

// What a launch needs from the outside: runs all its blocks on several OS threads, throws std::runtime_error.
void run_launch(Launch& launch);

// Whether both are the same place in the source.
bool same(const Site& a, const Site& b);
std::string describe(Site site);    // "gemm_kernel (gemm.cu:120)"
std::string describe(Index index);  // "(1,0,0)"

}  // namespace convnet::emu
