#include "barrier.hpp"

#include <bit>
#include <stdexcept>

#include "../check.hpp"
#include "cluster.hpp"
#include "glass.hpp"
#include "sm90.hpp"

namespace convnet {
namespace emu {
namespace {

constexpr int kLimit = (1 << 20) - 1;  // of arrivals and of bytes

// What stands in shared memory: the number of the barrier under a mark that nothing else looks like.
constexpr uint64_t kMark = 0xba221e2000000000u;

}  // namespace

uint32_t shared_number(const Block& block, const void* address, const char* operation, Site site) {
  const auto* byte = static_cast<const unsigned char*>(address);
  if (byte < block.shared.data() || byte >= block.shared.data() + block.shared.size())
    fail(message(operation, " in ", describe(site), " needs an address in the ",
                 block.shared.size(), " bytes of shared memory, got ", address));
  return kSharedWindow + static_cast<uint32_t>(byte - block.shared.data());
}

Barrier& counterpart(Barrier& barrier, const Block& block, const char* operation, Site site) {
  const uint32_t number = shared_number(*here->block, &barrier, operation, site);
  return *reinterpret_cast<Barrier*>(block.shared.data() + (number - kSharedWindow));
}

CountingBarrier& CountingBarriers::find(Barrier& barrier, const char* operation, Site site) {
  const uint32_t number = shared_number(block_, &barrier, operation, site);
  const uint64_t index = barrier.state ^ kMark;
  if (index >= barriers_.size() || barriers_[index].address != &barrier)
    fail(message(
        operation, " in ", describe(site), ": at byte ", number - kSharedWindow,
        " of shared memory", block_.of_cluster(),
        " there is no barrier; barrier_init() comes first, and nothing else may write there"));
  return barriers_[index];
}

// For the running thread.
CountingBarrier& CountingBarriers::visible(Barrier& barrier, const char* operation, Site site) {
  CountingBarrier& found = find(barrier, operation, site);
  if (here->block != &block_) {
    if (!found.fenced || block_.cluster.meetings() == found.cluster_fenced_at)
      fail(message(operation, " in ", describe(site), ": thread ", found.owner, block_.of_cluster(),
                   " has initialised this barrier in ", describe(found.site),
                   " but the cluster has not met since; cluster_sync() belongs behind "
                   "fence_barrier_init()"));
    return found;
  }
  if (found.owner == here->number) return found;
  if (!found.fenced)
    fail(message(operation, " in ", describe(site), ": thread ", found.owner,
                 " has initialised this barrier in ", describe(found.site),
                 " but has not called fence_barrier_init() yet"));
  if (block_.meetings() == found.fenced_at)
    fail(message(operation, " in ", describe(site), ": thread ", found.owner,
                 " has initialised this barrier in ", describe(found.site),
                 " but the block has not met since; __syncthreads() belongs behind "
                 "fence_barrier_init()"));
  return found;
}

void CountingBarriers::init(Barrier& barrier, int arrivals, Site site) {
  const uint32_t number = shared_number(block_, &barrier, "barrier_init", site);
  if (number % 8 != 0)
    fail(message("barrier_init in ", describe(site),
                 ": a barrier lies at a multiple of 8 bytes, got ", number - kSharedWindow));
  if (arrivals < 1 || arrivals > kLimit)
    fail(message("barrier_init in ", describe(site), ": arrivals must be 1 to ", kLimit, ", got ",
                 arrivals));
  for (const CountingBarrier& other : barriers_)
    if (other.address == &barrier)
      fail(message("barrier_init in ", describe(site), ": thread ", other.owner,
                   " has initialised this barrier in ", describe(other.site), " already"));
  barrier.state = kMark ^ barriers_.size();
  barriers_.push_back({.address = &barrier,
                       .phase = 0,
                       .expected = arrivals,
                       .pending = arrivals,
                       .missing_bytes = 0,
                       .observed = true,
                       .owner = here->number,
                       .fenced = false,
                       .fenced_at = 0,
                       .cluster_fenced_at = 0,
                       .site = site});
  if (watching) watch_barrier_init(&barrier, arrivals);
}

void CountingBarriers::fence() {
  for (CountingBarrier& barrier : barriers_)
    if (barrier.owner == here->number && !barrier.fenced) {
      barrier.fenced = true;
      barrier.fenced_at = block_.meetings();
      barrier.cluster_fenced_at = block_.cluster.meetings();
    }
}

void CountingBarriers::complete_phase(CountingBarrier& barrier) {
  if (barrier.pending > 0 || barrier.missing_bytes != 0) return;
  barrier.pending = barrier.expected;
  barrier.observed = false;
  ++barrier.phase;
  block_.count_meeting();
  if (watching) watch_phase(barrier.address);
}

// Why there can be no such arrival now; nothing: there can. Whoever waits for a phase must find the next one incomplete; only
// threads of another block, which do not wait for this one's, may have come to that one already.
std::string CountingBarriers::refusal(const CountingBarrier& barrier,
                                      int bytes,
                                      bool from_peer) const {
  if (!barrier.observed && (!from_peer || barrier.pending == 1))
    return message("phase ", barrier.phase, from_peer ? " ends" : " begins",
                   " before any thread has waited for phase ", barrier.phase - 1, " to complete");
  if (barrier.pending < 1)
    return message("more than the ", barrier.expected,
                   " arrivals that the barrier was initialised for", state_of(&barrier.phase));
  if (bytes < 0 || barrier.missing_bytes + bytes > kLimit)
    return message("a phase can wait for 0 to ", kLimit, " bytes, got ", bytes,
                   state_of(&barrier.phase));
  return {};
}

void CountingBarriers::count_arrival(CountingBarrier& barrier, int bytes) {
  barrier.missing_bytes += bytes;
  --barrier.pending;
  complete_phase(barrier);
}

void CountingBarriers::arrive(Barrier& barrier, int bytes, const char* operation, Site site) {
  CountingBarrier& found = visible(barrier, operation, site);
  if (const std::string why = refusal(found, bytes, false); !why.empty())
    fail(message(operation, " in ", describe(site), ": ", why));
  if (watching) watch_barrier(&barrier, operation, bytes, site);
  count_arrival(found, bytes);
}

void CountingBarriers::arrive_from_peer(Barrier& barrier, Site site) {
  CountingBarrier& found = visible(barrier, "barrier_arrive_at", site);
  if (watching) watch_barrier(&barrier, "barrier_arrive_at", 0, site);
  arrivals_.push_back({&found, here->block, here->index, site});
}

void CountingBarriers::land(std::size_t number) {
  const Arrival arrival = arrivals_[number];
  arrivals_.erase(arrivals_.begin() + static_cast<std::ptrdiff_t>(number));
  if (const std::string why = refusal(*arrival.barrier, 0, true); !why.empty())
    throw std::runtime_error(message("barrier_arrive_at in ", describe(arrival.site), " by thread ",
                                     describe(arrival.thread), arrival.by->of_cluster(), ": ",
                                     why));
  count_arrival(*arrival.barrier, 0);
}

void CountingBarriers::land_all() {
  while (!arrivals_.empty()) land(0);
}

void CountingBarriers::wait(Barrier& barrier, int parity, Site site) {
  CountingBarrier& found = visible(barrier, "barrier_wait", site);
  if (parity != 0 && parity != 1)
    fail(message("barrier_wait in ", describe(site), ": parity must be 0 or 1, got ", parity));
  if (watching) watch_barrier(&barrier, "barrier_wait", 0, site);
  // The phase of this parity is the one that was just completed or the one that is going on.
  if ((found.phase & 1) == static_cast<uint64_t>(parity)) {
    const uint64_t awaited = found.phase;
    block_.cluster.wait_while(found.phase, awaited, "barrier_wait", site);
    // With hardware a thread may look so seldom that it finds the same parity again and waits for the wrong phase.
    if (found.phase != awaited + 1)
      fail(message("barrier_wait in ", describe(site), ": while this thread waited for phase ",
                   awaited, " the barrier went on to phase ", found.phase,
                   "; its arrivals must include one that follows this wait"));
  }
  found.observed = true;
}

// As the engine that copies sees it, which is not the thread that asks for the copy.
CountingBarrier& CountingBarriers::of_copy(Barrier& barrier, const char* operation, Site site) {
  CountingBarrier& found = visible(barrier, operation, site);
  if (!found.fenced)
    fail(message(operation, " in ", describe(site), ": this thread has initialised the barrier in ",
                 describe(found.site), " but has not called fence_barrier_init() yet"));
  return found;
}

void CountingBarriers::bytes_arrived(CountingBarrier& barrier, int64_t bytes) {
  barrier.missing_bytes -= bytes;
  if (barrier.missing_bytes < -kLimit)
    throw std::runtime_error(message("more than ", kLimit,
                                     " bytes came to a barrier that does not expect them",
                                     state_of(&barrier.phase)));
  complete_phase(barrier);
}

// A phase that is short of bytes when nothing is under way can never complete.
void CountingBarriers::check_end() const {
  if (!arrivals_.empty())
    throw std::runtime_error(message("the block ended while an arrival at its barrier, by thread ",
                                     describe(arrivals_[0].thread), arrivals_[0].by->of_cluster(),
                                     " (barrier_arrive_at in ", describe(arrivals_[0].site),
                                     "), was under way; the block must wait for it"));
  for (const CountingBarrier& barrier : barriers_)
    if (barrier.missing_bytes != 0)
      throw std::runtime_error(message("the kernel ended with other bytes expected than copied",
                                       state_of(&barrier.phase)));
}

const CountingBarrier* CountingBarriers::overlapping(const unsigned char* begin,
                                                     std::size_t bytes) const {
  for (const CountingBarrier& barrier : barriers_) {
    const auto* place = reinterpret_cast<const unsigned char*>(barrier.address);
    if (place + sizeof(Barrier) > begin && place < begin + bytes) return &barrier;
  }
  return nullptr;
}

std::string CountingBarriers::state_of(const uint64_t* word) const {
  for (const CountingBarrier& barrier : barriers_)
    if (&barrier.phase == word)
      return message(" (barrier at byte ",
                     reinterpret_cast<const unsigned char*>(barrier.address) - block_.shared.data(),
                     " of shared memory", block_.of_cluster(), ", phase ", barrier.phase, ": ",
                     barrier.pending, " of ", barrier.expected, " arrivals and ",
                     barrier.missing_bytes, " bytes missing)");
  return {};
}

}  // namespace emu

void barrier_init(Barrier& barrier, int arrivals, std::source_location site) {
  if (!emu::passes("barrier_init", site)) return;
  emu::here->block->sm90("barrier_init", site).barriers.init(barrier, arrivals, site);
}

void fence_barrier_init(std::source_location site) {
  if (!emu::passes("fence_barrier_init", site)) return;
  emu::here->block->sm90("fence_barrier_init", site).barriers.fence();
}

void barrier_expect(Barrier& barrier, int bytes, std::source_location site) {
  if (!emu::passes("barrier_expect", site)) return;
  emu::here->block->sm90("barrier_expect", site)
      .barriers.arrive(barrier, bytes, "barrier_expect", site);
}

void barrier_arrive(Barrier& barrier, std::source_location site) {
  if (!emu::passes("barrier_arrive", site)) return;
  emu::here->block->sm90("barrier_arrive", site)
      .barriers.arrive(barrier, 0, "barrier_arrive", site);
}

void barrier_wait(Barrier& barrier, int parity, std::source_location site) {
  if (!emu::passes("barrier_wait", site)) return;
  emu::here->block->sm90("barrier_wait", site).barriers.wait(barrier, parity, site);
}

void named_barrier(int id, int threads, std::source_location site) {
  if (emu::passes("named_barrier", site)) emu::here->block->named_barrier(id, threads, site);
}

}  // namespace convnet
