// Square windows that a thread moves down a column of pixels: it keeps the sums of the rows of a
// window, and reads one row more for every pixel. A sum that adds what enters and subtracts what
// leaves would drift.
#pragma once
#include <algorithm>

#include "channels.cuh"

namespace convnet {

constexpr int64_t kColumnThreadsWanted = 1 << 17;  // about what an H100 keeps resident
constexpr int64_t kMinRows = 8;  // of a segment; below it re-reading outweighs the parallelism

// One thread per four neighbouring lanes of a segment of a column. Where these are too few to fill a
// device with whole columns, columns are cut; results do not depend on the cut.
struct ColumnGrid {
  LaneGrid grid;   // plane = channel of an image block, pixel = segment * W + column
  int H, W, rows;  // of an image, of a segment
};

inline ColumnGrid column_grid(
    const char* op, int64_t N, int64_t C, int64_t H, int64_t W, int64_t lanes) {
  const int64_t planes = image_blocks(op, N, lanes) * C;
  require(planes >= 1 && H >= 1 && W >= 1, op, ": sizes must be positive, got C=", C, " H=", H,
          " W=", W);
  const int64_t threads = planes * W * (lanes / 4);
  const int64_t cuts = std::max<int64_t>(1, std::min(kColumnThreadsWanted / threads, H / kMinRows));
  const int64_t rows = (H + cuts - 1) / cuts, segments = (H + rows - 1) / rows;
  return ColumnGrid{lane_grid(op, planes, segments * W, lanes), static_cast<int>(H),
                    static_cast<int>(W), static_cast<int>(rows)};
}

// The pixels of a thread: rows begin to end - 1 of a column.
struct ColumnPlace {
  bool inside;    // false in threads left over at the end of a plane
  int64_t first;  // offset of the plane at the thread's lanes
  int column, begin, end;
};

__device__ __forceinline__ ColumnPlace column_place(const ColumnGrid& columns, int64_t lanes) {
  const LanePlace at = lane_place(columns.grid);
  const int segment = at.pixel / columns.W, begin = segment * columns.rows;
  return ColumnPlace{at.inside, at.plane * columns.H * columns.W * lanes + at.lane,
                     at.pixel - segment * columns.W, begin,
                     columns.H - begin < columns.rows ? columns.H : begin + columns.rows};
}

// The image of one thread's lanes; zero outside, which is what sums want.
template <class T>
struct Plane {
  const T* values;
  int H, W;
  int64_t lanes;

  __device__ __forceinline__
  Plane(const T* tensor, const ColumnGrid& columns, const ColumnPlace& at, int64_t lanes)
      : values(tensor + at.first), H(columns.H), W(columns.W), lanes(lanes) {}

  __device__ __forceinline__ Lanes<4> read(int h, int w) const {
    const bool exists = h >= 0 && h < H && w >= 0 && w < W;
    return exists ? load<4>(values + (int64_t{h} * W + w) * lanes) : Lanes<4>{};
  }
};

// The sums of the rows under a window of `size` x `size`, of which `before` lie above its pixel.
// row(h) is the sum of row h, whatever is summed: kSize of them stay in registers. kSize 0: any size,
// every row is summed again for every pixel.
template <int kSize>
struct SquareWindow {
  int size, before;
  Lanes<4> rows[kSize ? kSize : 1];

  // In front of the pixel in row `begin`.
  template <class Row>
  __device__ __forceinline__ SquareWindow(int size, int before, int begin, const Row& row)
      : size(size), before(before) {
#pragma unroll
    for (int j = 1; j < kSize; ++j) rows[j] = row(begin - before + j - 1);
  }

  // On to the pixel in row h, the one below the last. Not for kSize 0.
  template <class Row>
  __device__ __forceinline__ void move(int h, const Row& row) {
#pragma unroll
    for (int j = 1; j < kSize; ++j) rows[j - 1] = rows[j];
    rows[kSize - 1] = row(h - before + kSize - 1);
  }

  // The sum over the window of the pixel in row h, the one below the last.
  template <class Row>
  __device__ __forceinline__ Lanes<4> sum(int h, const Row& row) {
    Lanes<4> total{};
    if constexpr (kSize > 0) {
      move(h, row);
#pragma unroll
      for (int j = 0; j < kSize; ++j)
#pragma unroll
        for (int l = 0; l < 4; ++l) total.v[l] = add_rn(total.v[l], rows[j].v[l]);
    } else {
#pragma unroll 1
      for (int j = 0; j < size; ++j) {
        const Lanes<4> next = row(h - before + j);
#pragma unroll
        for (int l = 0; l < 4; ++l) total.v[l] = add_rn(total.v[l], next.v[l]);
      }
    }
    return total;
  }
};

}  // namespace convnet
