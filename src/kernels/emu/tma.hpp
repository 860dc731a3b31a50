// Tensor copies of sm_90.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <source_location>

#include "../arch/tensor_map.hpp"
#include "barrier.hpp"

namespace convnet {

// As large as a CUtensorMap, and aligned like one: parameters that hold one lie as they do on a GPU.
struct alignas(128) TensorMap {
  uint64_t mark;  // set by tensor_map(): another struct is none
  Element element;
  Swizzle swizzle;
  const void* address;
  int64_t sizes[kTensorRank], byte_strides[kTensorRank - 1];
  int box[kTensorRank];
};
static_assert(sizeof(TensorMap) == 128);

TensorMap tensor_map(const char* what,
                     Element element,
                     const void* address,
                     const int64_t (&sizes)[kTensorRank],
                     const int64_t (&byte_strides)[kTensorRank - 1],
                     const int (&box)[kTensorRank],
                     Swizzle swizzle);

void tma_load(void* target,
              const TensorMap& map,
              Barrier& barrier,
              int c0,
              int c1,
              int c2,
              int c3,
              int c4,
              std::source_location site = std::source_location::current());
void tma_store(const TensorMap& map,
               const void* source,
               int c0,
               int c1,
               int c2,
               int c3,
               int c4,
               std::source_location site = std::source_location::current());
void prefetch(const TensorMap& map, std::source_location site = std::source_location::current());
void bulk_commit(std::source_location site = std::source_location::current());
void fence_async_proxy(std::source_location site = std::source_location::current());

namespace emu {

using TensorCoordinates = std::array<int, kTensorRank>;

void bulk_wait(int left, std::source_location site);

// The running thread has written to shared memory what copies or tensor cores may read later.
void note_shared_write(const void* address,
                       std::size_t bytes,
                       std::source_location site = std::source_location::current());

}  // namespace emu

// Copies to global memory happen when the thread waits for their sources to have been read.
template <int kLeft>
void bulk_wait_read(std::source_location site = std::source_location::current()) {
  emu::bulk_wait(kLeft, site);
}

template <int kLeft>
void bulk_wait(std::source_location site = std::source_location::current()) {
  emu::bulk_wait(kLeft, site);
}

}  // namespace convnet
