// mbarriers and named barriers.
#pragma once
#include <cstdint>
#include <source_location>

namespace convnet {

// In shared memory. Its phases are numbered from 0; it is in the first one that is not complete.
struct alignas(8) Barrier {
  uint64_t state;
};

void barrier_init(Barrier& barrier,
                  int arrivals,
                  std::source_location site = std::source_location::current());
void fence_barrier_init(std::source_location site = std::source_location::current());
void barrier_expect(Barrier& barrier,
                    int bytes,
                    std::source_location site = std::source_location::current());
void barrier_arrive(Barrier& barrier, std::source_location site = std::source_location::current());
void barrier_wait(Barrier& barrier,
                  int parity,
                  std::source_location site = std::source_location::current());
void named_barrier(int id,
                   int threads,
                   std::source_location site = std::source_location::current());

}  // namespace convnet
