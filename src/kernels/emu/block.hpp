// The threads of one block, run as fibers by one OS thread. Kernels see of this what emu.hpp makes of it.
//
// A thread runs until it ends or has to wait. All waiting is one thing: a word of memory that still has the value it had
// when the wait began. A barrier is such a word (it counts the times that everyone has arrived), so is the meeting of a warp,
// and the phase of an mbarrier. When a thread waits, the next one in a seeded order whose word has changed goes on. When there
// is none, one of the copies under way lands (sm90.hpp). When there is none of those either, the block is stuck for ever, and
// what the threads wait for is reported.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "fiber.hpp"
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
  std::size_t shared_bytes;
  Site site;
  void (*body)(const void* context);  // calls the kernel with its arguments
  const void* context;

  uint64_t seed = 0;    // of the orders of blocks and threads
  uint64_t blocks = 0;  // in the grid, below 2^32
  uint64_t step = 1;    // from block to block; shares no factor with `blocks`
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

  Block();
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // Takes blocks of the launch until there are none left. Returns an empty text, or what went wrong (the object must then be
  // thrown away: threads were left in the middle).
  std::string run(Launch& launch);

  // Called by the running thread, `here`.
  void barrier(Site site);
  void wait_while(const uint64_t& word, uint64_t seen, const char* waits_for, Site site);
  void check_meeting(const Warp& warp, const char* operation, Site site);
  void named_barrier(int id, int threads, Site site);

  // What goes on in this block besides its threads. Fails on a machine without these instructions.
  Sm90& sm90(const char* operation, Site site);
  Sm90* sm90_in_use() const { return sm90_used_ ? sm90_.get() : nullptr; }

  uint64_t seed() const { return launch_->seed; }
  int size() const { return static_cast<int>(threads_.size()); }
  uint64_t meetings() const { return meetings_; }
  void count_meeting() { ++meetings_; }

 private:
  [[noreturn]] static void fiber_main();
  void arrange_threads();
  bool next_block();
  void start_block(uint64_t position);
  Thread* end_thread(Thread& thread);
  Thread* next_ready(const Thread& from);
  void release_barrier();
  void resume(Thread& thread);
  std::string describe_threads() const;
  [[noreturn]] void fail_stuck();

  Launch* launch_ = nullptr;
  std::vector<Thread> threads_;  // in the order in which they take turns
  std::vector<Warp> warps_;
  std::size_t first_ = 0;  // whose turn it is first in this block
  int live_ = 0;
  int arrived_ = 0;        // at the barrier
  uint64_t barriers_ = 0;  // finished ones
  int torn_warps_ = 0;     // some lanes have ended, others not
  Site barrier_site_;
  uint64_t meetings_ = 0;  // of more than a warp: barriers of every kind that were passed
  NamedBarrier named_[kNamedBarriers];
  std::unique_ptr<Sm90> sm90_;
  bool sm90_used_ = false;  // in this block

  Fiber main_;
  Fiber* running_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  std::string error_;
};

// Throws std::runtime_error; in a kernel it ends the launch, and launch() throws it again.
[[noreturn]] void fail(const std::string& text);
// Where a kernel that is noted (launch.hpp) begins: ends the launch.
[[noreturn]] void note_beginning(Site site);
// For accesses to global memory that do not wait for the kernels before.
[[noreturn]] void fail_too_early(Site site);

// What a launch needs from the outside: runs all its blocks on several OS threads, throws std::runtime_error.
void run_launch(Launch& launch);

std::string describe(Site site);    // "gemm_kernel (gemm.cu:120)"
std::string describe(Index index);  // "(1,0,0)"

}  // namespace convnet::emu
