#include "tma.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "../check.hpp"
#include "cluster.hpp"
#include "glass.hpp"
#include "sm90.hpp"

namespace convnet {
namespace emu {
namespace {

constexpr uint64_t kMark = 0x7e4504a900000090u;
constexpr std::size_t kChunk = 16;  // bytes that stay together when swizzled

std::size_t box_bytes(const TensorMap& map) {
  std::size_t bytes = static_cast<std::size_t>(bytes_of(map.element));
  for (const int size : map.box) bytes *= static_cast<std::size_t>(size);
  return bytes;
}

// Calls row(inside, global address, first byte, bytes) for every row (dimension 0) of the box in order: which of its bytes
// lie in the tensor, and where those are.
template <class Row>
void for_each_row(const TensorMap& map, const TensorCoordinates& at, Row row) {
  const int64_t element = bytes_of(map.element);
  const int64_t begin = std::max<int64_t>(0, -int64_t{at[0]});
  const int64_t end = std::min<int64_t>(map.box[0], map.sizes[0] - at[0]);
  int64_t i[kTensorRank] = {};
  while (i[4] < map.box[4]) {
    bool inside = begin < end;
    int64_t offset = (at[0] + begin) * element;
    for (int d = 1; d < kTensorRank; ++d) {
      const int64_t place = at[static_cast<std::size_t>(d)] + i[d];
      inside &= place >= 0 && place < map.sizes[d];
      offset += place * map.byte_strides[d - 1];
    }
    if (inside)
      row(static_cast<std::size_t>(offset), static_cast<std::size_t>(begin * element),
          static_cast<std::size_t>((end - begin) * element));
    else
      row(0, 0, 0);
    for (int d = 1; d < kTensorRank && ++i[d] == map.box[d] && d < kTensorRank - 1; ++d) i[d] = 0;
  }
}

// Copies between a dense row and its chunks in shared memory; `address` is the number of the row's beginning.
template <class Copy>
void for_each_chunk(uint32_t address, std::size_t bytes, Swizzle swizzle, Copy copy) {
  for (std::size_t at = 0; at < bytes; at += kChunk)
    copy(at, swizzled(address + static_cast<uint32_t>(at), swizzle) - kSharedWindow);
}

}  // namespace

void TensorCopies::start() {
  loads_.clear();
  threads_.assign(static_cast<std::size_t>(block_.size()), {});
  if (any_noted_) chunks_.clear();
  any_noted_ = false;
  order_.seed(static_cast<unsigned>(block_.cluster.seed() * 31 + block_.index.x +
                                    block_.index.y * 7 + block_.index.z * 3 + 1));
}

void TensorCopies::check_box(const void* place,
                             const TensorMap& map,
                             const char* operation,
                             Site site) const {
  if (map.mark != kMark)
    fail(message(operation, " in ", describe(site), ": this map was not made by tensor_map()"));
  const uint32_t number = shared_number(block_, place, operation, site);
  const auto period = static_cast<uint32_t>(swizzle_period(map.swizzle));
  if (number % period != 0)
    fail(message(operation, " in ", describe(site), ": the box must lie at a multiple of ", period,
                 " bytes of shared memory, got ", number - kSharedWindow));
  const std::size_t bytes = box_bytes(map);
  if (number - kSharedWindow + bytes > block_.shared.size())
    fail(message(operation, " in ", describe(site), ": the box of ", bytes, " bytes at byte ",
                 number - kSharedWindow, " leaves the ", block_.shared.size(),
                 " bytes of shared memory"));
}

std::string TensorCopies::describe_load(const Load& load) {
  return message("the copy by thread ", describe(load.thread), load.by->of_cluster(), " (",
                 load.operation, " in ", describe(load.site), ")");
}

void TensorCopies::load(void* target,
                        const TensorMap& map,
                        Barrier& barrier,
                        TensorCoordinates at,
                        bool watched,
                        const char* operation,
                        Site site) {
  check_box(target, map, operation, site);
  CountingBarrier& counting = barriers_.of_copy(barrier, operation, site);
  const std::size_t bytes = box_bytes(map);
  auto* begin = static_cast<unsigned char*>(target);
  if (const CountingBarrier* hit = barriers_.overlapping(begin, bytes))
    fail(message(operation, " in ", describe(site), ": the box of ", bytes,
                 " bytes covers a barrier", barriers_.state_of(&hit->phase)));
  for (const Load& other : loads_)
    if (other.target < begin + bytes && begin < other.target + box_bytes(other.map))
      fail(message(operation, " in ", describe(site), ": ", describe_load(other),
                   " to the same bytes", block_.of_cluster(), " is still under way"));
  if (any_noted_) {  // what was written there does not matter any more
    const std::size_t first = static_cast<std::size_t>(begin - block_.shared.data()) / kChunk;
    std::fill_n(chunks_.begin() + static_cast<std::ptrdiff_t>(first), bytes / kChunk, Chunk{});
  }
  if (watching) watch_tensor_load(begin, bytes, &barrier, counting.phase, operation, site);
  std::memset(begin, 0xff, bytes);
  loads_.push_back({map, at, begin, &counting, here->block, here->index, watched, operation, site});
}

void TensorCopies::land(std::size_t number) {
  const Load load = loads_[number];
  loads_.erase(loads_.begin() + static_cast<std::ptrdiff_t>(number));
  const std::size_t bytes = box_bytes(load.map);
  for (std::size_t i = 0; i < bytes; ++i)
    if (load.target[i] != 0xff)
      throw std::runtime_error(
          message("byte ", load.target - block_.shared.data() + static_cast<std::ptrdiff_t>(i),
                  " of shared memory", block_.of_cluster(), " was written while ",
                  describe_load(load).substr(0, 8), " to it", describe_load(load).substr(8),
                  " was under way"));
  unsigned char row[256 * 4];
  const std::size_t row_bytes =
      static_cast<std::size_t>(load.map.box[0] * bytes_of(load.map.element));
  const auto* global = static_cast<const unsigned char*>(load.map.address);
  auto address = static_cast<uint32_t>(load.target - block_.shared.data()) + kSharedWindow;
  for_each_row(load.map, load.at, [&](std::size_t offset, std::size_t first, std::size_t count) {
    std::memset(row, 0, row_bytes);
    if (count > 0) std::memcpy(row + first, global + offset, count);
    if (watching && load.watched && count > 0) watch_row(global + offset, count, false, load.site);
    for_each_chunk(address, row_bytes, load.map.swizzle, [&](std::size_t at, uint32_t place) {
      std::memcpy(block_.shared.data() + place, row + at, kChunk);
    });
    address += static_cast<uint32_t>(row_bytes);
  });
  barriers_.bytes_arrived(*load.barrier, static_cast<int64_t>(bytes));
}

std::vector<unsigned char> TensorCopies::read_box(const unsigned char* source,
                                                  const TensorMap& map) const {
  std::vector<unsigned char> box(box_bytes(map));
  const auto address = static_cast<uint32_t>(source - block_.shared.data()) + kSharedWindow;
  for_each_chunk(address, box.size(), map.swizzle, [&](std::size_t at, uint32_t place) {
    std::memcpy(box.data() + at, block_.shared.data() + place, kChunk);
  });
  return box;
}

void TensorCopies::store(const TensorMap& map,
                         const void* source,
                         TensorCoordinates at,
                         Site site) {
  check_box(source, map, "tma_store", site);
  if (*std::min_element(at.begin(), at.end()) < 0)
    fail(message("tma_store in ", describe(site), ": coordinates must not be negative, got ", at[0],
                 ", ", at[1], ", ", at[2], ", ", at[3], ", ", at[4]));
  const auto* begin = static_cast<const unsigned char*>(source);
  check_visible(begin, box_bytes(map), "tma_store", site);
  mine().open.push_back({map, at, begin, read_box(begin, map), site});
}

void TensorCopies::commit() {
  ThreadState& state = mine();
  state.groups.push_back(std::exchange(state.open, {}));
}

void TensorCopies::wait(int left, Site site) {
  std::deque<std::vector<Store>>& groups = mine().groups;
  while (groups.size() > static_cast<std::size_t>(left)) {
    for (const Store& store : groups.front()) {
      if (read_box(store.source, store.map) != store.snapshot)
        fail(message("bulk_wait in ", describe(site), ": the source of tma_store in ",
                     describe(store.site), ", at byte ", store.source - block_.shared.data(),
                     " of shared memory, was changed before its store had read it"));
      perform(store);
    }
    groups.pop_front();
  }
}

void TensorCopies::perform(const Store& store) const {
  auto* global = static_cast<unsigned char*>(const_cast<void*>(store.map.address));
  const unsigned char* row = store.snapshot.data();
  const std::size_t row_bytes =
      static_cast<std::size_t>(store.map.box[0] * bytes_of(store.map.element));
  for_each_row(store.map, store.at, [&](std::size_t offset, std::size_t first, std::size_t count) {
    if (count > 0) std::memcpy(global + offset, row + first, count);
    if (watching && count > 0) watch_row(global + offset, count, true, store.site);
    row += row_bytes;
  });
}

void TensorCopies::end_thread(const Thread& thread) {
  const ThreadState& state = threads_[static_cast<std::size_t>(thread.number)];
  if (!state.open.empty())
    fail(message("the thread ended without bulk_commit() for tma_store in ",
                 describe(state.open.front().site)));
  for (const std::vector<Store>& group : state.groups)
    if (!group.empty())
      fail(message("the thread ended without bulk_wait or bulk_wait_read for tma_store in ",
                   describe(group.front().site)));
}

void TensorCopies::check_end() const {
  if (!loads_.empty())
    throw std::runtime_error(message("the kernel ended while ", describe_load(loads_[0]),
                                     " was under way; somebody must wait for its barrier"));
}

void TensorCopies::note_write(const unsigned char* begin, std::size_t bytes) {
  if (!any_noted_) chunks_.assign((block_.shared.size() + kChunk - 1) / kChunk, {});
  any_noted_ = true;
  const std::size_t offset = static_cast<std::size_t>(begin - block_.shared.data());
  for (std::size_t chunk = offset / kChunk; chunk * kChunk < offset + bytes; ++chunk) {
    chunks_[chunk] = {.writer = here->number};
    mine().written.push_back(chunk);
  }
}

void TensorCopies::fence() {
  for (const std::size_t chunk : mine().written)
    if (chunks_[chunk].writer == here->number && !chunks_[chunk].fenced)
      chunks_[chunk] = {here->number, true, block_.meetings(), here->warp->meetings};
  mine().written.clear();
}

void TensorCopies::check_visible(const unsigned char* begin,
                                 std::size_t bytes,
                                 const char* operation,
                                 Site site) const {
  if (!any_noted_) return;
  const std::size_t offset = static_cast<std::size_t>(begin - block_.shared.data());
  for (std::size_t at = offset / kChunk; at * kChunk < offset + bytes; ++at) {
    const Chunk& chunk = chunks_[at];
    if (chunk.writer < 0) continue;
    if (!chunk.fenced)
      fail(message(operation, " in ", describe(site), " reads byte ", at * kChunk,
                   " of shared memory, which thread ", chunk.writer,
                   " has written without fence_async_proxy()"));
    const bool same_warp = chunk.writer / kWarpLanes == here->number / kWarpLanes;
    if (chunk.writer != here->number && chunk.meetings == block_.meetings() &&
        !(same_warp && chunk.warp_meetings != here->warp->meetings))
      fail(message(operation, " in ", describe(site), " reads byte ", at * kChunk,
                   " of shared memory, which thread ", chunk.writer,
                   " has written, without a barrier since its fence_async_proxy()"));
  }
}

void Sm90::load(void* target,
                const TensorMap& map,
                Barrier& barrier,
                TensorCoordinates at,
                bool watched,
                const char* operation,
                Site site) {
  copies.load(target, map, barrier, at, watched, operation, site);
  warpgroups.check_unread(static_cast<const unsigned char*>(target), box_bytes(map), operation,
                          site);
}

bool Sm90::land_one() {
  const std::size_t loads = copies.under_way(), all = loads + barriers.under_way();
  if (all == 0) return false;
  const std::size_t chosen = copies.draw() % all;
  if (chosen < loads)
    copies.land(chosen);
  else
    barriers.land(chosen - loads);
  return true;
}

void bulk_wait(int left, Site site) {
  if (passes("bulk_wait", site)) here->block->sm90("bulk_wait", site).copies.wait(left, site);
}

void note_shared_write(const void* address, std::size_t bytes, Site site) {
  Block& block = *here->block;
  const auto* begin = static_cast<const unsigned char*>(address);
  shared_number(block, begin, "a write", site);
  shared_number(block, begin + bytes - 1, "a write", site);
  block.sm90("note_shared_write", site).copies.note_write(begin, bytes);
}

}  // namespace emu

TensorMap tensor_map(const char* what,
                     Element element,
                     const void* address,
                     const int64_t (&sizes)[kTensorRank],
                     const int64_t (&byte_strides)[kTensorRank - 1],
                     const int (&box)[kTensorRank],
                     Swizzle swizzle) {
  check_tensor_map(what, element, address, sizes, byte_strides, box, swizzle);
  TensorMap map{.mark = emu::kMark,
                .element = element,
                .swizzle = swizzle,
                .address = address,
                .sizes = {},
                .byte_strides = {},
                .box = {}};
  std::copy_n(sizes, kTensorRank, map.sizes);
  std::copy_n(byte_strides, kTensorRank - 1, map.byte_strides);
  std::copy_n(box, kTensorRank, map.box);
  return map;
}

void tma_load(void* target,
              const TensorMap& map,
              Barrier& barrier,
              int c0,
              int c1,
              int c2,
              int c3,
              int c4,
              std::source_location site) {
  if (!emu::here->begun) emu::fail_too_early(site);
  emu::here->block->sm90("tma_load", site)
      .load(target, map, barrier, {c0, c1, c2, c3, c4}, true, "tma_load", site);
}

void tma_store(const TensorMap& map,
               const void* source,
               int c0,
               int c1,
               int c2,
               int c3,
               int c4,
               std::source_location site) {
  if (!emu::here->begun) emu::fail_too_early(site);
  emu::here->block->sm90("tma_store", site).copies.store(map, source, {c0, c1, c2, c3, c4}, site);
}

void prefetch(const TensorMap& map, std::source_location site) {
  emu::here->block->sm90("prefetch", site);
  if (map.mark != emu::kMark)
    emu::fail(
        message("prefetch in ", emu::describe(site), ": this map was not made by tensor_map()"));
}

void bulk_commit(std::source_location site) {
  if (emu::passes("bulk_commit", site)) emu::here->block->sm90("bulk_commit", site).copies.commit();
}

void fence_async_proxy(std::source_location site) {
  if (emu::passes("fence_async_proxy", site))
    emu::here->block->sm90("fence_async_proxy", site).copies.fence();
}

}  // namespace convnet
