// What the three convolution kernels share: the shape of one group in 32-bit numbers, and its
// checks.
#pragma once
#include "../check.hpp"
#include "../shapes.hpp"
#include "variants.cuh"

namespace convnet {

// C and K count the channels and filters of one group. Offsets inside one image block fit 32 bits,
// also those of taps around it, blocks do not.
struct ConvProblem {
  int C, H, W, K, R, S, P, Q;
  int stride, pad_top, pad_left;
  int groups, lanes;
  int weight_row;   // values of a row of the weights: K, in bf16 rounded up to a multiple of 8
  int64_t columns;  // GEMM-N
  int64_t x_block;  // values of one image block of x and dx
  int64_t y_block;  // values of one image block of y and dy
  int x_channel;    // values of one channel of a block: H * W * lanes
  int y_channel;    // P * Q * lanes

  // Slots of a weight row (loaders.cuh) are 16-byte aligned, and lie inside or outside as a whole.
  __host__ __device__ bool whole_filters() const { return weight_row % 4 == 0; }
};

inline void check(const char* op, const ConvShape& s) {
  require(s.N >= 1 && s.C >= 1 && s.H >= 1 && s.W >= 1 && s.K >= 1 && s.R >= 1 && s.S >= 1, op,
          ": every size must be at least 1, got N=", s.N, " C=", s.C, " H=", s.H, " W=", s.W,
          " K=", s.K, " R=", s.R, " S=", s.S, "; skip the call for empty tensors");
  require(s.P >= 1 && s.Q >= 1, op, ": the output must have at least one pixel, got P=", s.P,
          " Q=", s.Q, "; enlarge the image or its padding, or shrink the filter");
  require(s.stride >= 1 && s.pad_top >= 0 && s.pad_left >= 0, op,
          ": stride must be at least 1 and padding at least 0, got stride=", s.stride,
          " pad_top=", s.pad_top, " pad_left=", s.pad_left,
          "; crop the image instead of padding less than 0");
  require(s.groups >= 1 && s.C % s.groups == 0 && s.K % s.groups == 0, op,
          ": groups must divide C and K, got C=", s.C, " K=", s.K, " groups=", s.groups,
          "; choose groups that divide both");
  require(s.lanes >= 8 && s.lanes % 8 == 0 && s.N % s.lanes == 0, op,
          ": lanes must be a multiple of 8 and divide N, got N=", s.N, " lanes=", s.lanes,
          "; pad the batch with images");
  const int64_t limit = int64_t{1} << 31, spatial_limit = int64_t{1} << 28;
  require(
      s.C / s.groups * s.H * s.W * s.lanes < limit && s.K / s.groups * s.P * s.Q * s.lanes < limit,
      op, ": one group of ", s.lanes,
      " images must have fewer than 2^31 values, got C/groups*H*W=", s.C / s.groups * s.H * s.W,
      " K/groups*P*Q=", s.K / s.groups * s.P * s.Q, "; use fewer lanes or smaller images");
  require(
      s.C / s.groups * s.R * s.S * round_up(s.K / s.groups, 8) < limit, op,
      ": the filters of a group must have fewer than 2^31 values, got C/groups=", s.C / s.groups,
      " R=", s.R, " S=", s.S, " K/groups=", s.K / s.groups, "; use more groups");
  require(s.P * s.stride + s.R < spatial_limit && s.Q * s.stride + s.S < spatial_limit &&
              s.pad_top < spatial_limit && s.pad_left < spatial_limit,
          op, ": coordinates must stay below 2^28, got P=", s.P, " Q=", s.Q, " R=", s.R, " S=", s.S,
          " stride=", s.stride, " pad_top=", s.pad_top, " pad_left=", s.pad_left,
          "; reduce stride or padding");
  require(s.R * s.W * s.lanes < limit && s.S * s.lanes < limit, op,
          ": R * W * lanes and S * lanes must be below 2^31, got R=", s.R, " W=", s.W, " S=", s.S,
          " lanes=", s.lanes, "; use smaller filters or fewer lanes");
  require(s.groups <= 65535, op, ": groups must be at most 65535, got ", s.groups,
          "; run the groups in several calls");
}

// Of a checked shape.
inline ConvProblem conv_problem(const ConvShape& s, Precision precision) {
  ConvProblem p{};
  p.C = int(s.C / s.groups), p.H = int(s.H), p.W = int(s.W);
  p.K = int(s.K / s.groups), p.R = int(s.R), p.S = int(s.S), p.P = int(s.P), p.Q = int(s.Q);
  p.stride = int(s.stride), p.pad_top = int(s.pad_top), p.pad_left = int(s.pad_left);
  p.groups = int(s.groups), p.lanes = int(s.lanes);
  p.weight_row = precision == Precision::bf16 ? int(round_up(p.K, 8)) : p.K;
  p.x_channel = int(s.H * s.W * s.lanes), p.y_channel = int(s.P * s.Q * s.lanes);
  p.x_block = s.C * p.x_channel, p.y_block = s.K * p.y_channel;
  return p;
}

// A column of a GEMM whose columns are [block][row][column][lane].
struct Pixel {
  int64_t block;
  int row, column, lane;

  // To the GEMM column `by` further on, which is few pixels away.
  __device__ __forceinline__ void advance(int by, int rows, int columns, int lanes) {
    lane += by;
    while (lane >= lanes) {
      lane -= lanes;
      if (++column < columns) continue;
      column = 0;
      if (++row < rows) continue;
      row = 0;
      ++block;
    }
  }
};

__device__ __forceinline__ Pixel pixel_of(int64_t index, int rows, int columns, int lanes) {
  const int64_t per_block = int64_t{rows} * columns * lanes;
  const int64_t block = index / per_block;
  const unsigned rest = static_cast<unsigned>(index - block * per_block);
  const unsigned pixel = rest / unsigned(lanes);
  return Pixel{block, int(pixel / unsigned(columns)), int(pixel % unsigned(columns)),
               int(rest % unsigned(lanes))};
}

// A half-open range of filter rows or columns.
struct Range {
  int begin, end;
  __device__ __forceinline__ int count() const { return end > begin ? end - begin : 0; }
};

// Rows and columns that the pixels of columns first..last of a GEMM span, as inclusive bounds: a
// tile that stays inside one image block spans some rows, a tile inside one row some columns.
struct Span {
  int row_min, row_max, column_min, column_max;
};

__device__ __forceinline__ Span
span_of(int64_t first, int64_t last, int rows, int columns, int lanes) {
  const Pixel a = pixel_of(first, rows, columns, lanes);
  const Pixel b = pixel_of(last, rows, columns, lanes);
  if (a.block != b.block) return Span{0, rows - 1, 0, columns - 1};
  if (a.row != b.row) return Span{a.row, b.row, 0, columns - 1};
  return Span{a.row, a.row, a.column, b.column};
}

constexpr int kOutside = -(1 << 30);  // a coordinate that no filter tap brings into an image

__device__ __forceinline__ bool inside(int row, int column, int rows, int columns) {
  const bool in_rows = static_cast<unsigned>(row) < static_cast<unsigned>(rows);
  const bool in_columns = static_cast<unsigned>(column) < static_cast<unsigned>(columns);
  return in_rows & in_columns;  // without a branch
}

}  // namespace convnet
