// Copies from global to shared memory that run on their own (cp.async), of the block that runs.
//
// A copy lands as late as it may: when the thread that issued it waits for its group. Until then its target is full of
// 0xff, and must be left alone.
#pragma once
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <vector>

#include "shared_memory.hpp"

namespace convnet::emu {

class PendingCopies {
 public:
  // Nothing is under way.
  void start_block(std::size_t threads, const SharedMemory& shared);

  // `source` is nullptr for zeros. Called by thread number `thread`, and so are the following.
  void issue(int thread,
             unsigned char* target,
             const unsigned char* source,
             int bytes,
             std::source_location site);
  void commit(int thread);
  // Lets groups land, the oldest first, until at most `left` remain.
  void wait(int thread, std::size_t left);
  // Nothing must be under way when a thread ends. Groups without copies may be.
  void check_end(int thread) const;

 private:
  struct Copy {
    unsigned char* target;
    const unsigned char* source;
    int bytes;
    std::source_location site;
    unsigned char value[16];  // of the source when the copy was issued
  };
  struct Queue {
    std::vector<Copy> copies;         // the oldest first
    std::vector<std::size_t> groups;  // how many of them, for each group that is closed
    std::size_t open = 0;             // how many do not belong to one yet
  };

  void land(const Copy& copy);
  unsigned char* word_of(const unsigned char* target);

  std::vector<Queue> queues_;         // by number of the thread
  std::vector<unsigned char> words_;  // of shared memory: 1 where a copy is to land
  const unsigned char* begin_ = nullptr;
};

}  // namespace convnet::emu
