// What goes on in a block of sm_90 besides its threads: barriers that count, tensor copies, products of warpgroups. The
// functions that kernels call are in barrier.hpp, tma.hpp and wgmma.hpp.
//
// All of it is as unhelpful as the hardware may be. A load makes its destination NaN at once and lands when no thread of the
// cluster can go on any more; so does an arrival at the barrier of another block, and a load into several blocks lands in each
// of them at a time of its own. A store reads its source when the thread waits for it, and then the source must still be what it
// was. Products happen when their warpgroup waits for them, with what the operands are then, and until then the sums are NaN.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "barrier.hpp"
#include "block.hpp"
#include "tma.hpp"

namespace convnet::emu {

// Shared memory as instructions know it: numbers, which begin at a multiple of 1024 behind a system's part.
inline constexpr uint32_t kSharedWindow = 1024;

// The 16-byte chunk at an address of shared memory lies here.
constexpr uint32_t swizzled(uint32_t address, Swizzle swizzle) {
  return address ^ (address >> 7 & (static_cast<uint32_t>(span_of(swizzle)) / 16 - 1)) << 4;
}

// --- barrier.cpp: mbarriers

struct CountingBarrier {
  const Barrier* address;
  uint64_t phase;  // the first one that is not complete
  int expected, pending;
  int64_t
      missing_bytes;  // expected ones less those that have arrived, below zero when they come first
  bool observed;      // somebody has waited for the phase before this one
  int owner;          // the thread that initialised it
  bool fenced;        // fence_barrier_init was called ...
  uint64_t fenced_at, cluster_fenced_at;  // ... after so many meetings of the block, of its cluster
  Site site;
};

class CountingBarriers {
 public:
  explicit CountingBarriers(Block& block) : block_(block) {}
  void start() {
    barriers_.clear();
    arrivals_.clear();
  }
  void init(Barrier& barrier, int arrivals, Site site);
  void fence();
  void arrive(Barrier& barrier, int bytes, const char* operation, Site site);
  // The running thread belongs to another block of the cluster; its arrival is under way until it lands.
  void arrive_from_peer(Barrier& barrier, Site site);
  std::size_t under_way() const { return arrivals_.size(); }
  void land(std::size_t arrival);
  void land_all();
  void wait(Barrier& barrier, int parity, Site site);
  CountingBarrier& of_copy(Barrier& barrier, const char* operation, Site site);
  void bytes_arrived(CountingBarrier& barrier, int64_t bytes);
  void check_end() const;
  const CountingBarrier* overlapping(const unsigned char* begin, std::size_t bytes) const;
  std::string state_of(const uint64_t* word) const;

 private:
  struct Arrival {
    CountingBarrier* barrier;
    const Block* by;
    Index thread;
    Site site;
  };

  CountingBarrier& find(Barrier& barrier, const char* operation, Site site);
  CountingBarrier& visible(Barrier& barrier, const char* operation, Site site);
  std::string refusal(const CountingBarrier& barrier, int bytes, bool from_peer) const;
  void count_arrival(CountingBarrier& barrier, int bytes);
  void complete_phase(CountingBarrier& barrier);

  Block& block_;
  std::deque<CountingBarrier> barriers_;  // their addresses never change
  std::vector<Arrival> arrivals_;         // of other blocks' threads, under way
};

// --- tma.cpp: tensor copies, and what they and tensor cores may read

class TensorCopies {
 public:
  TensorCopies(Block& block, CountingBarriers& barriers) : block_(block), barriers_(barriers) {}
  void start();
  // By the running thread, which may belong to another block of the cluster. `watched`: its reads of the tensor count.
  void load(void* target,
            const TensorMap& map,
            Barrier& barrier,
            TensorCoordinates at,
            bool watched,
            const char* operation,
            Site site);
  std::size_t under_way() const { return loads_.size(); }
  void land(std::size_t load);
  std::size_t draw() { return order_(); }
  void store(const TensorMap& map, const void* source, TensorCoordinates at, Site site);
  void commit();
  void wait(int left, Site site);
  void end_thread(const Thread& thread);
  void check_end() const;

  // Writes by threads, which become visible to copies and tensor cores by fence_async_proxy().
  void note_write(const unsigned char* begin, std::size_t bytes);
  void fence();
  bool any_noted() const { return any_noted_; }
  // Fails unless the running thread may let a copy or a tensor core read this.
  void check_visible(const unsigned char* begin,
                     std::size_t bytes,
                     const char* operation,
                     Site site) const;

 private:
  struct Load {
    TensorMap map;
    TensorCoordinates at;
    unsigned char* target;
    CountingBarrier* barrier;
    const Block* by;
    Index thread;
    bool watched;
    const char* operation;
    Site site;
  };
  struct Store {
    TensorMap map;
    TensorCoordinates at;
    const unsigned char* source;
    std::vector<unsigned char> snapshot;  // in the order of the tensor
    Site site;
  };
  struct ThreadState {
    std::vector<Store> open;                // not committed
    std::deque<std::vector<Store>> groups;  // committed
    std::vector<std::size_t> written;       // chunks, since the last fence
  };
  struct Chunk {
    int writer = -1;
    bool fenced = false;
    uint64_t meetings = 0,
             warp_meetings = 0;  // of the writer's block and warp, when it called the fence
  };

  void check_box(const void* place, const TensorMap& map, const char* operation, Site site) const;
  static std::string describe_load(const Load& load);
  std::vector<unsigned char> read_box(const unsigned char* source, const TensorMap& map) const;
  void perform(const Store& store) const;
  ThreadState& mine() { return threads_[static_cast<std::size_t>(here->number)]; }

  Block& block_;
  CountingBarriers& barriers_;
  std::vector<Load> loads_;
  std::vector<ThreadState> threads_;
  std::vector<Chunk> chunks_;  // of shared memory, 16 bytes each
  bool any_noted_ = false;
  std::minstd_rand order_;
};

// --- wgmma.cpp: tensor cores of warpgroups

inline constexpr int kGroupThreads = 128;
inline constexpr int kProductRows = 64, kProductTerms = 16;

// What all threads of a warpgroup call alike.
struct Product {
  bool commit = false;  // no product but the end of a group
  bool tf32 = false;    // else bf16
  int columns = 0;
  bool transpose_a = false, transpose_b = false, a_in_registers = false;
  uint64_t a = 0, b = 0;

  int terms() const { return tf32 ? kProductTerms / 2 : kProductTerms; }
};

class Warpgroups {
 public:
  Warpgroups(Block& block, TensorCopies& copies) : block_(block), copies_(copies) {}
  void start();
  void fence();
  void add(const Product& product, float* sum, const uint32_t* a_registers, Site site);
  void wait(int left, Site site);
  void check_at_rest(const void* begin, std::size_t bytes, Site site);
  // Fails where a product that is not done reads these bytes of shared memory.
  void check_unread(const unsigned char* begin,
                    std::size_t bytes,
                    const char* operation,
                    Site site) const;
  void set_registers(int count, bool raise, Site site);
  void end_thread(const Thread& thread);

 private:
  struct Issued : Product {
    std::size_t sums, new_sums;  // which of the group's, now and after some have been returned
    Site site;
    std::vector<std::array<uint32_t, 4>> a_values;  // of each thread
    std::vector<const uint32_t*> a_places;
  };
  struct Sums {
    int columns;
    std::array<float*, kGroupThreads> places;  // of each thread, nullptr until it has come
    std::vector<float> values;                 // [64][columns]
  };
  struct Group {
    std::vector<Issued> issued;  // not performed
    std::vector<Sums> sums;
    std::array<std::size_t, kGroupThreads> position;  // in `issued`, of each thread
    std::array<bool, kGroupThreads> fenced;
    int waiting, left;
    Site site;           // where the first thread waits
    uint64_t waits = 0;  // finished ones
  };

  Group& mine(const char* operation, Site site);
  void check_operand(
      uint64_t descriptor, int extent, bool transposed, const char* which, Site site) const;
  void join(Group& group, Issued& product, float* sum, Site site);
  void complete(Group& group, int left);
  void return_sums(Sums& sums, const Group& group);
  void perform(Group& group, const Issued& product);
  void gather(
      uint64_t descriptor, int extent, bool transposed, bool terms_first, double* out) const;
  void gather_tf32(const Issued& product, double* out) const;
  void place_a(const Issued& product);

  Block& block_;
  TensorCopies& copies_;
  std::vector<Group> groups_;
  std::vector<double> a_, b_;   // operands of the product that is performed
  std::vector<int> registers_;  // per thread, of each warp
  int free_registers_ = 0;      // of the block
  uint64_t releases_ = 0;       // times that there became more of them
};

class Sm90 {
 public:
  explicit Sm90(Block& block)
      : barriers(block), copies(block, barriers), warpgroups(block, copies) {}

  void start() {
    barriers.start();
    copies.start();
    warpgroups.start();
  }
  void end_thread(const Thread& thread) {
    copies.end_thread(thread);
    warpgroups.end_thread(thread);
  }
  void end_block() const {
    copies.check_end();
    barriers.check_end();
  }
  void load(void* target,
            const TensorMap& map,
            Barrier& barrier,
            TensorCoordinates at,
            bool watched,
            const char* operation,
            Site site);
  // Lets one of the loads and arrivals under way to this block land, false when there is none.
  bool land_one();
  // What is to be said about a word that a thread waits for.
  std::string state_of(const uint64_t* word) const { return barriers.state_of(word); }

  CountingBarriers barriers;
  TensorCopies copies;
  Warpgroups warpgroups;
};

// The number of an address in shared memory; fails when it is none.
uint32_t shared_number(const Block& block, const void* address, const char* operation, Site site);
// What lies in another block where `barrier` lies in that of the running thread.
Barrier& counterpart(Barrier& barrier, const Block& block, const char* operation, Site site);

}  // namespace convnet::emu
