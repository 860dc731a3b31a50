#include "block.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "../check.hpp"
#include "cluster.hpp"
#include "glass.hpp"
#include "launch.hpp"
#include "sm90.hpp"

namespace convnet::emu {

bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

Block::Block(Cluster& cluster, int rank) : cluster(cluster), rank(rank) {}
Block::~Block() = default;

void Block::prepare(const Launch& launch) {
  grid = launch.grid;
  extent = launch.block;
  shared.resize(launch.shared_bytes);
  warps_.resize(static_cast<std::size_t>((size() + kWarpLanes - 1) / kWarpLanes));
}

void Block::start(uint64_t number) {
  index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
           static_cast<unsigned>(number / grid.x / grid.y)};
  shared.poison();
  copies.start_block(static_cast<std::size_t>(size()), shared);
  for (std::size_t w = 0; w < warps_.size(); ++w) {
    warps_[w].arrived = warps_[w].ended = 0;
    warps_[w].size = std::min(kWarpLanes, size() - static_cast<int>(w) * kWarpLanes);
  }
  live_ = size();
  arrived_ = torn_warps_ = 0;
  for (NamedBarrier& barrier : named_) barrier.arrived = 0;
  sm90_used_ = false;
  if (watching) watch_block_begin(*this);
}

std::string Block::of_cluster() const {
  return cluster.size() > 1 ? message(" of block ", rank, " of the cluster") : "";
}

void Block::end_thread(Thread& thread) {
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
    return;
  }
  if (sm90_used_) sm90_->end_block();
  if (watching) watch_block_end(*this);
  const std::string damage = shared.damage();
  if (!damage.empty())
    throw std::runtime_error("one of its threads wrote to shared memory " + damage +
                             "; a build with -fsanitize=address shows where");
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
    cluster.wait_while(barriers_, barriers_, "__syncthreads", site);
}

void Block::release_barrier() {
  if (torn_warps_ > 0)
    fail(message("the barrier at ", describe(barrier_site_),
                 " was reached by a part of a warp, the rest of which has ended",
                 cluster.describe_threads()));
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
    cluster.wait_while(barrier.meetings, barrier.meetings, "named_barrier", site);
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

}  // namespace convnet::emu
