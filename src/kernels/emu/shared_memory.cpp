#include "shared_memory.hpp"

#include <cstdint>
#include <cstring>

#include "../check.hpp"
#include "fiber.hpp"

#if CONVNET_EMU_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace convnet::emu {
namespace {

constexpr std::size_t kAlignment = 1024;  // as the GPU side promises
constexpr std::size_t kGuard = 4096;      // on each side; a tile's row is at most 1 KiB
// A NaN as float, so that reading it shows in the result even when it is multiplied by zero; and a signalling one, which
// every arithmetic changes, so that adding something to it shows here.
constexpr unsigned char kPattern[4] = {0xa5, 0xa5, 0xa5, 0xff};

unsigned char pattern_at(const unsigned char* at) {
  return kPattern[reinterpret_cast<uintptr_t>(at) % 4];
}

void set_guard(unsigned char* begin, unsigned char* end) {
  for (unsigned char* at = begin; at != end; ++at) *at = pattern_at(at);
}

// A guard repeats every four bytes: it is whole when it equals itself moved by four and its beginning is right.
[[maybe_unused]] bool guard_intact(const unsigned char* begin) {
  for (int i = 0; i < 4; ++i)
    if (begin[i] != pattern_at(begin + i)) return false;
  return std::memcmp(begin, begin + 4, kGuard - 4) == 0;
}

}  // namespace

void SharedMemory::resize(std::size_t bytes) {
  if (bytes == size_ && bytes > 0) return;
#if CONVNET_EMU_ASAN
  if (memory_) __asan_unpoison_memory_region(data_ - kGuard, size_ + 2 * kGuard);
#endif
  memory_.reset();
  data_ = nullptr;
  size_ = bytes;
  if (bytes == 0) return;
  memory_.reset(new unsigned char[bytes + 2 * kGuard + kAlignment]);
  const uintptr_t start = reinterpret_cast<uintptr_t>(memory_.get()) + kGuard;
  data_ = memory_.get() + kGuard + (kAlignment - start % kAlignment) % kAlignment;
  set_guard(data_ - kGuard, data_);
  set_guard(data_ + size_, data_ + size_ + kGuard);
#if CONVNET_EMU_ASAN
  __asan_poison_memory_region(data_ - kGuard, kGuard);
  __asan_poison_memory_region(data_ + size_, kGuard);
#endif
}

void SharedMemory::poison() {
  if (size_ > 0) std::memset(data_, 0xff, size_);
}

std::string SharedMemory::damage() const {
#if !CONVNET_EMU_ASAN
  if (size_ == 0 || (guard_intact(data_ - kGuard) && guard_intact(data_ + size_))) return {};
  for (std::size_t i = 0; i < kGuard; ++i)
    if (data_[size_ + i] != pattern_at(data_ + size_ + i))
      return message("behind its end (", size_, " bytes), in the word at byte ",
                     (size_ + i) / 4 * 4);
  for (std::size_t i = 1; i <= kGuard; ++i)
    if (*(data_ - i) != pattern_at(data_ - i))
      return message("in front of its beginning, in the word at byte -", (i + 3) / 4 * 4);
#endif
  return {};
}

}  // namespace convnet::emu
