// The blocks of one cluster and their threads, run as fibers by one OS thread; and what kernels call of a cluster (sm_90).
// Where a launch asks for none, a cluster is one block.
//
// A thread runs until it ends or has to wait. All waiting is one thing: a word of memory that still has the value it had
// when the wait began. A barrier is such a word (it counts the times that everyone has arrived), so is the meeting of a warp,
// and the phase of an mbarrier. When a thread waits, the next one in a seeded order whose word has changed goes on. When there
// is none, one of the copies or arrivals under way lands (sm90.hpp). When there is none of those either, the cluster is stuck
// for ever, and what the threads wait for is reported.
//
// Blocks of a cluster take turns, or one of them, which the seed chooses, goes as far ahead of the others as barriers let it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <source_location>
#include <string>
#include <vector>

#include "barrier.hpp"
#include "block.hpp"
#include "fiber.hpp"
#include "tma.hpp"

struct float4;

namespace convnet {
namespace emu {

inline constexpr unsigned kMostClusterBlocks = 8;  // that every GPU with clusters can run

class Cluster {
 public:
  Cluster();
  ~Cluster();
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  // Takes clusters of the launch until there are none left. Returns an empty text, or what went wrong (the object must then be
  // thrown away: threads were left in the middle).
  std::string run(Launch& launch);

  // Called by the running thread, `here`.
  void wait_while(const uint64_t& word, uint64_t seen, const char* waits_for, Site site);
  void sync(Site site);
  float4 load4(const float* address, int rank, Site site);
  // Of which the running thread wants to reach shared memory.
  Block& peer(int rank, const char* operation, Site site);

  int size() const { return size_; }
  uint64_t seed() const { return launch_->seed; }
  uint64_t meetings() const { return meetings_; }  // of all its blocks
  std::string describe_threads() const;

 private:
  // A read of another block's shared memory since the cluster met.
  struct Read {
    int of, by;  // blocks
    std::size_t offset;
    Site site;
  };

  [[noreturn]] static void fiber_main();
  void arrange_threads();
  bool next_cluster();
  void start(uint64_t number);
  Thread* end_thread(Thread& thread);
  Thread* next_ready(const Thread& from);
  Thread* next_ready(const Thread& from, const Block* of);
  bool land_one(const Block* of);
  void release();
  void check_reads(const Block* ended) const;
  void resume(Thread& thread);
  [[noreturn]] void fail_stuck();

  Launch* launch_ = nullptr;
  std::vector<std::unique_ptr<Block>> blocks_;  // the first size_ of them are in use
  int size_ = 1;
  std::vector<Thread> threads_;   // of all blocks, in the order in which they take turns
  std::size_t first_ = 0;         // whose turn it is first in this cluster
  const Block* ahead_ = nullptr;  // goes ahead of the others; nullptr: they take turns
  int live_ = 0;
  int arrived_ = 0;  // at the cluster's barrier
  uint64_t meetings_ = 0;
  std::minstd_rand order_;                       // in which copies and arrivals land in blocks
  Site site_;                                    // where the first thread arrived
  std::vector<std::vector<unsigned char>> met_;  // shared memory of the blocks when they last met
  std::vector<Read> reads_;

  Fiber main_;
  Fiber* running_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  std::string error_;
};

}  // namespace emu

int cluster_rank(std::source_location site = std::source_location::current());
void cluster_sync(std::source_location site = std::source_location::current());
void barrier_arrive_at(Barrier& barrier,
                       int rank,
                       std::source_location site = std::source_location::current());
void tma_load_multicast(void* target,
                        const TensorMap& map,
                        Barrier& barrier,
                        uint16_t blocks,
                        int c0,
                        int c1,
                        int c2,
                        int c3,
                        int c4,
                        std::source_location site = std::source_location::current());
float4 load4_cluster(const float* address,
                     int rank,
                     std::source_location site = std::source_location::current());

}  // namespace convnet
