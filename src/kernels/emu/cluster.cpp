#include "cluster.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <exception>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>

#include "../check.hpp"
#include "emu.hpp"
#include "sm90.hpp"

namespace convnet {
namespace emu {

constinit thread_local Thread* here = nullptr;

namespace {

// Spreads neighbouring numbers over all 64 bits.
uint64_t mix(uint64_t x) {
  x = (x + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
  return x ^ x >> 32;
}

}  // namespace

Cluster::Cluster() = default;
Cluster::~Cluster() = default;

std::string Cluster::run(Launch& launch) {
  launch_ = &launch;
  size_ = static_cast<int>(launch.cluster);
  while (blocks_.size() < launch.cluster)
    blocks_.push_back(std::make_unique<Block>(*this, static_cast<int>(blocks_.size())));
  for (int rank = 0; rank < size_; ++rank) blocks_[static_cast<std::size_t>(rank)]->prepare(launch);
  met_.resize(launch.cluster);
  arrange_threads();
  error_.clear();
  if (next_cluster()) {
    running_ = &main_;
    resume(threads_[first_]);  // comes back when there are no clusters left, or with an error
    here = nullptr;
  }
  launch_ = nullptr;
  return std::move(error_);
}

// The order of turns is drawn once per launch; clusters differ in who is first.
void Cluster::arrange_threads() {
  const Index extent = launch_->block;
  const std::size_t of_block = std::size_t{extent.x} * extent.y * extent.z;
  const std::size_t count = of_block * launch_->cluster;
  threads_.resize(count);
  std::vector<unsigned> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0u);
  std::minstd_rand random(static_cast<unsigned>(mix(launch_->seed)));
  for (std::size_t i = count; i > 1; --i) std::swap(numbers[i - 1], numbers[random() % i]);
  for (std::size_t i = 0; i < count; ++i) {
    const auto number = static_cast<unsigned>(numbers[i] % of_block);
    Thread& thread = threads_[i];
    thread.index = {number % extent.x, number / extent.x % extent.y, number / extent.x / extent.y};
    thread.number = static_cast<int>(number);
    thread.lane = static_cast<int>(number % kWarpLanes);
    thread.block = blocks_[numbers[i] / of_block].get();
    thread.warp = &thread.block->warp(number / kWarpLanes);
  }
}

// Begins the next cluster of the grid that nobody has taken, false when there is none.
bool Cluster::next_cluster() {
  if (launch_->failed.load(std::memory_order_relaxed)) return false;
  const uint64_t position = launch_->taken.fetch_add(1, std::memory_order_relaxed);
  if (position >= launch_->clusters) return false;
  start((position * launch_->step + launch_->seed % launch_->clusters) % launch_->clusters);
  return true;
}

void Cluster::start(uint64_t number) {
  for (Thread& thread : threads_) {
    thread.word = &kNothing;
    thread.seen = 0;
    thread.fiber = nullptr;
    thread.begun = false;
  }
  const uint64_t drawn = mix(launch_->seed + number);
  first_ = drawn % threads_.size();
  const auto ahead = static_cast<int>(drawn / threads_.size() % (launch_->cluster + 1));
  ahead_ = size_ > 1 && ahead < size_ ? blocks_[static_cast<std::size_t>(ahead)].get() : nullptr;
  order_.seed(static_cast<unsigned>(drawn));
  live_ = static_cast<int>(threads_.size());
  arrived_ = 0;
  meetings_ = 0;
  reads_.clear();
  for (int rank = 0; rank < size_; ++rank)
    blocks_[static_cast<std::size_t>(rank)]->start(number * launch_->cluster +
                                                   static_cast<uint64_t>(rank));
}

// What a fiber does: runs a thread to its end, then starts the next one that has not begun. Only threads that wait keep a
// fiber, so a kernel without barriers runs on one, without any switch.
void Cluster::fiber_main() {
  Cluster& cluster = here->block->cluster;
  Fiber* next_fiber = nullptr;
  while (next_fiber == nullptr) {
    Thread* next = nullptr;
    try {
      here->fiber = cluster.running_;
      cluster.launch_->body(cluster.launch_->context);
      next = cluster.end_thread(*here);
    } catch (const std::exception& error) {
      // Thrown by fail(), so that the frames of the kernel are cleaned up.
      cluster.error_ = message("block ", describe(here->block->index), ", ", error.what());
    }
    if (next == nullptr) {
      next_fiber = &cluster.main_;  // no clusters are left, or an error
    } else {
      here = next;
      next_fiber = next->fiber;
    }
  }
  cluster.idle_.push_back(cluster.running_);
  Fiber& from = *std::exchange(cluster.running_, next_fiber);
  Fiber::leave_for_ever(from, *next_fiber);
}

// Returns whose turn it is now, nullptr when the last cluster is done.
Thread* Cluster::end_thread(Thread& thread) {
  Block& block = *thread.block;
  block.end_thread(thread);
  if (block.ended()) check_reads(&block);
  --live_;
  if (live_ > 0) {
    if (arrived_ == live_) release();
    return next_ready(thread);
  }
  return next_cluster() ? &threads_[first_] : nullptr;
}

// The next thread in turn that can go on. It is an error when there is none and nothing under way that could help.
Thread* Cluster::next_ready(const Thread& from) {
  do {
    if (ahead_ != nullptr) {
      do {
        if (Thread* thread = next_ready(from, ahead_)) return thread;
      } while (land_one(ahead_));
    }
    if (Thread* thread = next_ready(from, nullptr)) return thread;
  } while (land_one(nullptr));
  fail_stuck();
}

// Among the threads of a block, or of all blocks.
Thread* Cluster::next_ready(const Thread& from, const Block* of) {
  Thread* const begin = threads_.data();
  Thread* const end = begin + threads_.size();
  Thread* const middle = begin + (&from - begin) + 1;
  const auto chosen = [of](const Thread& thread) {
    return thread.ready() && (of == nullptr || thread.block == of);
  };
  for (Thread* thread = middle; thread != end; ++thread)
    if (chosen(*thread)) return thread;
  for (Thread* thread = begin; thread != middle; ++thread)
    if (chosen(*thread)) return thread;
  return nullptr;
}

// Lets something under way to a block, or to any block, arrive. False when there is nothing.
bool Cluster::land_one(const Block* of) {
  const auto size = static_cast<std::size_t>(size_);
  const std::size_t first = size > 1 ? order_() : 0;
  for (std::size_t i = 0; i < size; ++i) {
    const Block& block = *blocks_[(first + i) % size];
    Sm90* sm90 = block.sm90_in_use();
    if ((of == nullptr || of == &block) && sm90 != nullptr && sm90->land_one()) return true;
  }
  return false;
}

void Cluster::wait_while(const uint64_t& word, uint64_t seen, const char* waits_for, Site site) {
  Thread& thread = *here;
  thread.word = &word;
  thread.seen = seen;
  thread.waits_for = waits_for;
  thread.site = site;
  Thread* next = next_ready(thread);
  if (next != &thread) resume(*next);
  thread.word = &kNothing;
  thread.seen = 0;
}

void Cluster::sync(Site site) {
  if (arrived_ == 0) {
    site_ = site;
  } else if (!same(site, site_)) {
    here->waits_for = "cluster_sync";
    fail(message("threads of one cluster meet at different barriers: thread ", here->number,
                 here->block->of_cluster(), " came to ", describe(site), " while others wait at ",
                 describe(site_)));
  }
  if (++arrived_ == live_)
    release();
  else
    wait_while(meetings_, meetings_, "cluster_sync", site);
}

// All that threads did before is done, arrivals included; copies are not.
void Cluster::release() {
  check_reads(nullptr);
  reads_.clear();
  for (int rank = 0; rank < size_; ++rank) {
    Block& block = *blocks_[static_cast<std::size_t>(rank)];
    if (block.has_torn_warps())
      fail(message("cluster_sync in ", describe(site_),
                   " was reached by a part of a warp, the rest of which has ended",
                   describe_threads()));
    block.count_meeting();
    if (watching) watch_meeting_of_block(block);
    if (Sm90* sm90 = block.sm90_in_use()) sm90->barriers.land_all();
    const unsigned char* shared = block.shared.data();
    met_[static_cast<std::size_t>(rank)].assign(shared, shared + block.shared.size());
  }
  arrived_ = 0;
  ++meetings_;
}

Block& Cluster::peer(int rank, const char* operation, Site site) {
  if (rank < 0 || rank >= size_)
    fail(message(operation, " in ", describe(site), ": a cluster of ", size_, " has no block ",
                 rank));
  Block& found = *blocks_[static_cast<std::size_t>(rank)];
  if (found.ended())
    fail(
        message(operation, " in ", describe(site), ": block ", rank,
                " of the cluster has ended; it must wait for all that other blocks send it, or for "
                "them in a cluster_sync()"));
  return found;
}

// Only what was there when the cluster last met is sure to be seen.
float4 Cluster::load4(const float* address, int rank, Site site) {
  Block& block = peer(rank, "load4_cluster", site);
  const auto* byte = reinterpret_cast<const unsigned char*>(aligned<16>(address, site));
  const auto offset =
      static_cast<std::size_t>(shared_number(*here->block, byte, "load4_cluster", site)) -
      kSharedWindow;
  const unsigned char* there = block.shared.data() + offset;
  if (meetings_ == 0 ||
      std::memcmp(there, met_[static_cast<std::size_t>(rank)].data() + offset, sizeof(float4)) != 0)
    fail(message("load4_cluster in ", describe(site), " reads bytes ", offset, "-", offset + 15,
                 " of shared memory", block.of_cluster(),
                 ", which may have been written since the cluster last met in cluster_sync()"));
  if (&block != here->block) reads_.push_back({rank, here->block->rank, offset, site});
  float4 value;
  std::memcpy(&value, there, sizeof value);
  return value;
}

// A block must leave alone what others read, and must not end, before the cluster meets again.
void Cluster::check_reads(const Block* ended) const {
  for (const Read& read : reads_) {
    const auto of = static_cast<std::size_t>(read.of);
    const bool changed = std::memcmp(blocks_[of]->shared.data() + read.offset,
                                     met_[of].data() + read.offset, sizeof(float4)) != 0;
    if (changed || blocks_[of].get() == ended)
      throw std::runtime_error(message(
          "bytes ", read.offset, "-", read.offset + 15, " of shared memory",
          blocks_[of]->of_cluster(), ", which block ", read.by, " has read (load4_cluster in ",
          describe(read.site), "), ", changed ? "were written" : "went with the block",
          " before the cluster met again in cluster_sync()"));
  }
}

// Runs `thread` from where it waits, or from its beginning on a stack that nobody uses.
void Cluster::resume(Thread& thread) {
  Fiber* fiber = thread.fiber;
  if (fiber == nullptr && !idle_.empty()) {
    fiber = idle_.back();
    idle_.pop_back();
    fiber->restart();
  } else if (fiber == nullptr) {
    fibers_.push_back(
        std::make_unique<Fiber>(static_cast<int>(fibers_.size()), &Cluster::fiber_main));
    fiber = fibers_.back().get();
  }
  here = &thread;
  Fiber& from = *std::exchange(running_, fiber);
  Fiber::switch_stacks(from, *fiber);
}

}  // namespace emu

int cluster_rank(std::source_location site) {
  emu::here->block->sm90("cluster_rank", site);
  return emu::here->block->rank;
}

void cluster_sync(std::source_location site) {
  if (!emu::passes("cluster_sync", site)) return;
  emu::here->block->sm90("cluster_sync", site);
  emu::here->block->cluster.sync(site);
}

void barrier_arrive_at(Barrier& barrier, int rank, std::source_location site) {
  if (!emu::passes("barrier_arrive_at", site)) return;
  emu::Block& block = *emu::here->block;
  emu::Sm90& sm90 = block.sm90("barrier_arrive_at", site);
  emu::Block& target = block.cluster.peer(rank, "barrier_arrive_at", site);
  if (&target == &block)
    sm90.barriers.arrive(barrier, 0, "barrier_arrive_at", site);
  else
    target.sm90("barrier_arrive_at", site)
        .barriers.arrive_from_peer(emu::counterpart(barrier, target, "barrier_arrive_at", site),
                                   site);
}

void tma_load_multicast(void* target,
                        const TensorMap& map,
                        Barrier& barrier,
                        uint16_t blocks,
                        int c0,
                        int c1,
                        int c2,
                        int c3,
                        int c4,
                        std::source_location site) {
  if (!emu::here->begun) emu::fail_too_early(site);
  const char* operation = "tma_load_multicast";
  emu::Block& block = *emu::here->block;
  block.sm90(operation, site);
  if (blocks == 0)
    emu::fail(message(operation, " in ", emu::describe(site), " to no block: its mask is 0"));
  auto* byte = static_cast<unsigned char*>(target);
  const uint32_t offset = emu::shared_number(block, target, operation, site) - emu::kSharedWindow;
  for (int rank = 0; rank < std::bit_width(blocks); ++rank) {
    if ((blocks >> rank & 1) == 0) continue;
    emu::Block& there = block.cluster.peer(rank, operation, site);
    const bool own = &there == &block;
    // The second level of cache is read once.
    const bool first = rank == std::countr_zero(blocks);
    there.sm90(operation, site)
        .load(own ? byte : there.shared.data() + offset, map,
              own ? barrier : emu::counterpart(barrier, there, operation, site),
              {c0, c1, c2, c3, c4}, first, operation, site);
  }
}

float4 load4_cluster(const float* address, int rank, std::source_location site) {
  emu::here->block->sm90("load4_cluster", site);
  return emu::here->block->cluster.load4(address, rank, site);
}

}  // namespace convnet
