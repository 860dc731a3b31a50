// The shared memory of the block that runs: as many bytes as the launch asked for, and traps on both sides.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace convnet::emu {

class SharedMemory {
 public:
  SharedMemory() = default;
  ~SharedMemory() { resize(0); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void resize(std::size_t bytes);

  // Every byte becomes 0xff: NaN as float, -1 as integer.
  void poison();

  // What lies on both sides is NaN too, so that reading there shows in the result. Returns where it was written to, or an
  // empty text. With AddressSanitizer any access there stops the program at once.
  std::string damage() const;

  unsigned char* data() const { return data_; }
  std::size_t size() const { return size_; }
  bool holds(const void* address, std::size_t bytes) const {
    const auto offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(data_);
    return bytes <= size_ && offset <= size_ - bytes;
  }

 private:
  std::unique_ptr<unsigned char[]> memory_;
  unsigned char* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace convnet::emu
