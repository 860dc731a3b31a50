#include "block.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>

#include "../check.hpp"
#include "glass.hpp"
#include "launch.hpp"
#include "sm90.hpp"

namespace convnet::emu {

constinit thread_local Thread* here = nullptr;

namespace {

bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

// Spreads neighbouring numbers over all 64 bits.
uint64_t mix(uint64_t x) {
  x = (x + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
  return x ^ x >> 32;
}

}  // namespace

Block::Block() = default;
Block::~Block() = default;

std::string Block::run(Launch& launch) {
  launch_ = &launch;
  grid = launch.grid;
  extent = launch.block;
  shared.resize(launch.shared_bytes);
  arrange_threads();
  error_.clear();
  if (next_block()) {
    running_ = &main_;
    resume(threads_[first_]);  // comes back when there are no blocks left, or with an error
    here = nullptr;
  }
  launch_ = nullptr;
  return std::move(error_);
}

// The order of turns is drawn once per launch; blocks differ in who is first.
void Block::arrange_threads() {
  const std::size_t count = std::size_t{extent.x} * extent.y * extent.z;
  threads_.resize(count);
  warps_.resize((count + kWarpLanes - 1) / kWarpLanes);
  std::vector<unsigned> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0u);
  std::minstd_rand random(static_cast<unsigned>(mix(launch_->seed)));
  for (std::size_t i = count; i > 1; --i) std::swap(numbers[i - 1], numbers[random() % i]);
  for (std::size_t i = 0; i < count; ++i) {
    const unsigned number = numbers[i];
    Thread& thread = threads_[i];
    thread.index = {number % extent.x, number / extent.x % extent.y, number / extent.x / extent.y};
    thread.number = static_cast<int>(number);
    thread.lane = static_cast<int>(number % kWarpLanes);
    thread.block = this;
    thread.warp = &warps_[number / kWarpLanes];
  }
}

// Begins the next block of the grid that nobody has taken, false when there is none.
bool Block::next_block() {
  if (launch_->failed.load(std::memory_order_relaxed)) return false;
  const uint64_t position = launch_->taken.fetch_add(1, std::memory_order_relaxed);
  if (position >= launch_->blocks) return false;
  start_block((position * launch_->step + launch_->seed % launch_->blocks) % launch_->blocks);
  return true;
}

void Block::start_block(uint64_t number) {
  index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
           static_cast<unsigned>(number / grid.x / grid.y)};
  shared.poison();
  copies.start_block(threads_.size(), shared);
  for (Thread& thread : threads_) {
    thread.word = &kNothing;
    thread.seen = 0;
    thread.fiber = nullptr;
    thread.begun = false;
  }
  const int count = static_cast<int>(threads_.size());
  for (std::size_t w = 0; w < warps_.size(); ++w) {
    warps_[w].arrived = warps_[w].ended = 0;
    warps_[w].size = std::min(kWarpLanes, count - static_cast<int>(w) * kWarpLanes);
  }
  first_ = mix(launch_->seed + number) % threads_.size();
  live_ = count;
  arrived_ = torn_warps_ = 0;
  for (NamedBarrier& barrier : named_) barrier.arrived = 0;
  sm90_used_ = false;
  if (watching) watch_block_begin(*this);
}

Sm90& Block::sm90(const char* operation, Site site) {
  if (!sm90_used_) {
    if (architecture() < 90)
      fail(message(operation, " in ", describe(site), " needs sm_90, but the machine is sm_",
                   architecture(), "; choose kernels by architecture()"));
    if (!sm90_) sm90_ = std::make_unique<Sm90>(*this);
    sm90_->start();
    sm90_used_ = true;
  }
  return *sm90_;
}

// What a fiber does: runs a thread to its end, then starts the next one that has not begun. Only threads that wait keep a
// fiber, so a kernel without barriers runs on one, without any switch.
void Block::fiber_main() {
  Block& block = *here->block;
  Fiber* next_fiber = nullptr;
  while (next_fiber == nullptr) {
    Thread* next = nullptr;
    try {
      here->fiber = block.running_;
      block.launch_->body(block.launch_->context);
      next = block.end_thread(*here);
    } catch (const std::exception& error) {
      // Thrown by fail(), so that the frames of the kernel are cleaned up.
      block.error_ = message("block ", describe(block.index), ", ", error.what());
    }
    if (next == nullptr) {
      next_fiber = &block.main_;  // no blocks are left, or an error
    } else {
      here = next;
      next_fiber = next->fiber;
    }
  }
  block.idle_.push_back(block.running_);
  Fiber& from = *std::exchange(block.running_, next_fiber);
  Fiber::leave_for_ever(from, *next_fiber);
}

// Returns whose turn it is now, nullptr when the last block is done.
Thread* Block::end_thread(Thread& thread) {
  if (!thread.begun) fail("a thread ended without begin_kernel()");
  copies.check_end(thread.number);
  if (sm90_used_) sm90_->end_thread(thread);
  thread.word = &kForEver;
  thread.seen = 0;
  Warp& warp = *thread.warp;
  if (++warp.ended == 1) ++torn_warps_;
  if (warp.ended == warp.size) --torn_warps_;
  --live_;
  if (live_ > 0) {
    if (arrived_ == live_) release_barrier();  // hardware does not wait for threads that have ended
    return next_ready(thread);
  }
  if (sm90_used_) sm90_->end_block();
  if (watching) watch_block_end(*this);
  const std::string damage = shared.damage();
  if (!damage.empty())
    throw std::runtime_error("one of its threads wrote to shared memory " + damage +
                             "; a build with -fsanitize=address shows where");
  return next_block() ? &threads_[first_] : nullptr;
}

// The next thread in turn that can go on. It is an error when there is none and nothing under way that could help.
Thread* Block::next_ready(const Thread& from) {
  Thread* const begin = threads_.data();
  Thread* const end = begin + threads_.size();
  Thread* const middle = begin + (&from - begin) + 1;
  do {
    for (Thread* thread = middle; thread != end; ++thread)
      if (thread->ready()) return thread;
    for (Thread* thread = begin; thread != middle; ++thread)
      if (thread->ready()) return thread;
  } while (sm90_used_ && sm90_->land_one());
  fail_stuck();
}

void Block::wait_while(const uint64_t& word, uint64_t seen, const char* waits_for, Site site) {
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

void Block::barrier(Site site) {
  if (arrived_ == 0) {
    barrier_site_ = site;
  } else if (!same(site, barrier_site_)) {
    here->waits_for = "__syncthreads";
    fail(message("threads of one block meet at different barriers: thread ", here->number,
                 " came to ", describe(site), " while others wait at ", describe(barrier_site_)));
  }
  if (++arrived_ == live_)
    release_barrier();
  else
    wait_while(barriers_, barriers_, "__syncthreads", site);
}

void Block::release_barrier() {
  if (torn_warps_ > 0)
    fail(message("the barrier at ", describe(barrier_site_),
                 " was reached by a part of a warp, the rest of which has ended",
                 describe_threads()));
  arrived_ = 0;
  ++barriers_;
  ++meetings_;
  if (watching) watch_meeting_of_block(*this);
}

void Block::named_barrier(int id, int count, Site site) {
  if (id < 1 || id >= kNamedBarriers || count < kWarpLanes || count % kWarpLanes != 0 ||
      count > size())
    fail(message("named_barrier in ", describe(site),
                 ": id must be 1 to 15, and the number of threads a multiple of 32 within the ",
                 size(), " of the block, got id=", id, " threads=", count));
  NamedBarrier& barrier = named_[id];
  if (barrier.arrived == 0) {
    barrier.threads = count;
    barrier.site = site;
    barrier.arrived_of_warp.assign(warps_.size(), 0);
  } else if (barrier.threads != count) {
    fail(message("named_barrier ", id, " in ", describe(site), " is for ", count,
                 " threads, but others wait for ", barrier.threads, " at ",
                 describe(barrier.site)));
  }
  ++barrier.arrived_of_warp[static_cast<std::size_t>(here->warp - warps_.data())];
  ++barrier.arrived;
  if (watching) watch_named_barrier(id, count, barrier.arrived == count, site);
  if (barrier.arrived < count) {
    wait_while(barrier.meetings, barrier.meetings, "named_barrier", site);
    return;
  }
  for (const int lanes : barrier.arrived_of_warp)
    if (lanes % kWarpLanes != 0)
      fail(message("named_barrier ", id, " in ", describe(site), ": its ", count,
                   " threads include ", lanes, " of a warp; whole warps must call it"));
  barrier.arrived = 0;
  ++barrier.meetings;
  ++meetings_;
}

void Block::check_meeting(const Warp& warp, const char* operation, Site site) {
  if (warp.size < kWarpLanes)
    fail(message(operation, " at ", describe(site), " needs all 32 lanes, but this warp has ",
                 warp.size, "; use a block size that is a multiple of 32"));
  if (warp.arrived > 0 && !same(site, warp.site))
    fail(message("lanes of one warp meet at different operations: thread ", here->number,
                 " came to ", operation, " at ", describe(site), " while others wait at ",
                 describe(warp.site)));
}

// Runs `thread` from where it waits, or from its beginning on a stack that nobody uses.
void Block::resume(Thread& thread) {
  Fiber* fiber = thread.fiber;
  if (fiber == nullptr && !idle_.empty()) {
    fiber = idle_.back();
    idle_.pop_back();
    fiber->restart();
  } else if (fiber == nullptr) {
    fibers_.push_back(
        std::make_unique<Fiber>(static_cast<int>(fibers_.size()), &Block::fiber_main));
    fiber = fibers_.back().get();
  }
  here = &thread;
  Fiber& from = *std::exchange(running_, fiber);
  Fiber::switch_stacks(from, *fiber);
}

}  // namespace convnet::emu
