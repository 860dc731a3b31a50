// Square windows over the pixels of one map: some lanes of it at a time, a row at a time, so that what a window needs stays
// in the cache.
#pragma once
#include <algorithm>
#include <cstdint>

#include "level.hpp"
#include "work.hpp"

namespace convnet::cpu {

// Some lanes of one map: pixel (h, w) has `lanes` values at first + (h * W + w) * step.
struct Strip {
  int64_t H, W, first, step, lanes;
  int64_t row() const { return W * lanes; }

  // Calls f(values in front of it in a row without gaps, values from the start of the tensor, count) for runs of row h that
  // lie together.
  template <class Function>
  CONVNET_INLINE void runs(int64_t h, const Function& f) const {
    if (lanes == step) {
      f(int64_t{0}, first + h * W * step, W * lanes);
    } else {
      for (int64_t w = 0; w < W; ++w) f(w * lanes, first + (h * W + w) * step, lanes);
    }
  }
};

// task(strip) for all maps of all image blocks. Strips are as wide as keeps their rows in the cache.
template <class Shape, class Task>
void over_strips(const Shape& shape, const Task& task) {
  constexpr int64_t kRow = 1 << 12, kFewest = 16;  // values of a row, lanes
  const int64_t L = shape.lanes;
  const int64_t width = std::min(L, std::max(kFewest, kRow / shape.W / kFewest * kFewest));
  const int64_t strips = (L + width - 1) / width;
  in_parallel(shape.N / L * shape.C * strips, [&](int64_t index) {
    const int64_t plane = index / strips, lane = index % strips * width;
    task(Strip{shape.H, shape.W, plane * shape.H * shape.W * L + lane, L,
               std::min(width, L - lane)});
  });
}

// y = the sum of `count` rows, in their order; row(j) is the address of the j-th.
template <int kCount, class Row>
CONVNET_INLINE inline void add_up(const Row& row, int64_t n, float* y) {
  const float* from[kCount];
  for (int j = 0; j < kCount; ++j) from[j] = row(j);
  for (int64_t i = 0; i < n; ++i) {
    float sum = from[0][i];
    for (int j = 1; j < kCount; ++j) sum += from[j][i];
    y[i] = sum;
  }
}

template <class Row>
CONVNET_INLINE inline void add_up(int64_t count, const Row& row, int64_t n, float* y) {
  if (count == 3) {
    add_up<3>(row, n, y);
  } else if (count == 5) {
    add_up<5>(row, n, y);
  } else {
    add_up<1>(row, n, y);
    for (int64_t j = 1; j < count; ++j) {
      const float* const from = row(j);
      for (int64_t i = 0; i < n; ++i) y[i] += from[i];
    }
  }
}

// Window sums of a strip, rows of which enter one after the other: `before` pixels of a window of `size` x `size` lie in
// front of its own. Rows are summed as they enter, and the sums kept as long as a window needs them.
class WindowSums {
 public:
  // Floats that it works in.
  static int64_t memory(const Strip& strip, int64_t size) {
    return (strip.W + size - 1) * strip.lanes + size * strip.row();
  }

  CONVNET_INLINE WindowSums(const Strip& strip, int64_t size, int64_t before, float* memory)
      : strip_(strip),
        size_(size),
        before_(before),
        padded_(memory),
        sums_(memory + (strip.W + size - 1) * strip.lanes) {
    std::fill(padded_, sums_, 0.0f);  // what lies beside the image stays 0
  }

  // Lets in the rows that the window of row h needs; fill(row, to) puts all its values together.
  template <class Fill>
  CONVNET_INLINE void enter(int64_t h, const Fill& fill) {
    for (; entered_ < last(h); ++entered_) {
      fill(entered_, padded_ + before_ * strip_.lanes);
      add_up(
          size_, [&](int64_t s) CONVNET_INLINE { return padded_ + s * strip_.lanes; }, strip_.row(),
          sum_of(entered_));
    }
  }

  // y = the sums over the windows of row h.
  CONVNET_INLINE void sum(int64_t h, float* y) const {
    const int64_t first = std::max<int64_t>(h - before_, 0);
    add_up(
        last(h) - first, [&](int64_t j) CONVNET_INLINE { return sum_of(first + j); }, strip_.row(),
        y);
  }

 private:
  CONVNET_INLINE int64_t last(int64_t h) const { return std::min(h - before_ + size_, strip_.H); }
  CONVNET_INLINE float* sum_of(int64_t row) const { return sums_ + row % size_ * strip_.row(); }

  const Strip strip_;
  const int64_t size_, before_;
  float* const padded_;
  float* const sums_;  // of the last `size` rows
  int64_t entered_ = 0;
};

}  // namespace convnet::cpu
