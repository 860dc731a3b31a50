// Asynchronous copies of sm_80; see pending_copies.hpp.
#pragma once
#include <cstddef>
#include <source_location>

#include "../check.hpp"
#include "block.hpp"
#include "glass.hpp"

namespace convnet {
namespace emu {

[[noreturn]] void fail_unaligned(const void* address, int bytes, Site site);
[[noreturn]] void fail_not_shared(const char* operation, const void* address, Site site);

}  // namespace emu

// Both addresses are checked even where nothing is read.
template <int kBytes>
void copy_async(void* target,
                const void* source,
                bool exists,
                std::source_location site = std::source_location::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "copy_async: 4, 8 or 16 bytes");
  emu::Block& block = *emu::here->block;
  if (!emu::here->begun) emu::fail_too_early(site);
  for (const void* address : {static_cast<const void*>(target), source})
    if (reinterpret_cast<uintptr_t>(address) % kBytes != 0)
      emu::fail_unaligned(address, kBytes, site);
  if (!block.shared.holds(target, kBytes)) emu::fail_not_shared("copy_async", target, site);
  if (exists && block.shared.holds(source, 1))
    emu::fail(message("copy_async in ", emu::describe(site), " reads shared memory"));
  if (emu::watching) emu::watch_copy(target, source, kBytes, exists, site);
  block.copies.issue(emu::here->number, static_cast<unsigned char*>(target),
                     exists ? static_cast<const unsigned char*>(source) : nullptr, kBytes, site);
}

inline void copy_async_commit(std::source_location site = std::source_location::current()) {
  if (!emu::passes("copy_async_commit", site)) return;
  if (emu::watching) emu::watch_commit();
  emu::here->block->copies.commit(emu::here->number);
}

template <int kLeft>
void copy_async_wait(std::source_location site = std::source_location::current()) {
  static_assert(kLeft >= 0);
  if (emu::passes("copy_async_wait", site)) emu::here->block->copies.wait(emu::here->number, kLeft);
}

}  // namespace convnet
