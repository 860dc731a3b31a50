#include "pending_copies.hpp"

#include <algorithm>
#include <cstring>

#include "../check.hpp"
#include "block.hpp"
#include "glass.hpp"
#include "tma.hpp"

namespace convnet::emu {

void PendingCopies::start_block(std::size_t threads, const SharedMemory& shared) {
  // Copies under way at the end of a block were an error, but groups without copies may be left.
  queues_.resize(threads);
  for (Queue& queue : queues_) queue.groups.clear();
  words_.resize((shared.size() + 3) / 4);
  begin_ = shared.data();
}

unsigned char* PendingCopies::word_of(const unsigned char* target) {
  return words_.data() + (target - begin_) / 4;
}

void PendingCopies::issue(
    int thread, unsigned char* target, const unsigned char* source, int bytes, Site site) {
  unsigned char* const words = word_of(target);
  const int count = bytes / 4;
  if (std::find(words, words + count, 1) != words + count)
    fail(message("copy_async in ", describe(site), " to bytes ", target - begin_, "-",
                 target - begin_ + bytes - 1,
                 " of shared memory, where an earlier copy has not landed yet"));
  std::memset(words, 1, static_cast<std::size_t>(count));
  std::memset(target, 0xff, static_cast<std::size_t>(bytes));
  Queue& queue = queues_[static_cast<std::size_t>(thread)];
  Copy& copy = queue.copies.emplace_back(Copy{target, source, bytes, site, {}});
  if (source != nullptr) std::memcpy(copy.value, source, static_cast<std::size_t>(bytes));
  ++queue.open;
}

void PendingCopies::commit(int thread) {
  Queue& queue = queues_[static_cast<std::size_t>(thread)];
  queue.groups.push_back(queue.open);
  queue.open = 0;
}

void PendingCopies::wait(int thread, std::size_t left) {
  Queue& queue = queues_[static_cast<std::size_t>(thread)];
  if (queue.groups.size() <= left) return;
  const auto groups = queue.groups.begin();
  const auto last_group = queue.groups.end() - static_cast<std::ptrdiff_t>(left);
  std::size_t count = 0;
  for (auto group = groups; group != last_group; ++group) count += *group;
  const auto last = queue.copies.begin() + static_cast<std::ptrdiff_t>(count);
  for (auto copy = queue.copies.begin(); copy != last; ++copy) land(*copy);
  queue.copies.erase(queue.copies.begin(), last);
  queue.groups.erase(groups, last_group);
}

void PendingCopies::land(const Copy& copy) {
  const auto bytes = static_cast<std::size_t>(copy.bytes);
  if (std::find_if(copy.target, copy.target + bytes,
                   [](unsigned char byte) { return byte != 0xff; }) != copy.target + bytes)
    fail(message("somebody wrote to bytes ", copy.target - begin_, "-",
                 copy.target - begin_ + copy.bytes - 1, " of shared memory while copy_async in ",
                 describe(copy.site), " was on its way there"));
  if (copy.source != nullptr && std::memcmp(copy.source, copy.value, bytes) != 0)
    fail(message("somebody wrote to the source of copy_async in ", describe(copy.site),
                 " before it had landed"));
  std::memcpy(copy.target, copy.value, bytes);
  if (watching) watch_landed(copy.target);
  std::memset(word_of(copy.target), 0, bytes / 4);
  if (here->block->sm90_in_use() != nullptr) note_shared_write(copy.target, bytes, copy.site);
}

void PendingCopies::check_end(int thread) const {
  const Queue& queue = queues_[static_cast<std::size_t>(thread)];
  if (queue.copies.empty()) return;
  fail(message("ended while ", queue.copies.size(),
               " of its copies were under way, the first from copy_async in ",
               describe(queue.copies.front().site),
               queue.copies.size() > queue.open ? "; nobody waited for its group"
                                                : "; its group was never committed"));
}

}  // namespace convnet::emu
