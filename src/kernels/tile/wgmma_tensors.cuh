// What tensor copies of the Hopper family read and write: bfloat16 activations and weight copies as
// tensor maps, for launchers.
#pragma once
#include "wgmma_ring.cuh"

namespace convnet {

// A bfloat16 activation as tensor copies see it: 64 lanes, then maps, columns, rows and blocks, with
// strides in bytes.
struct Activation {
  const void* data;
  int64_t maps, columns, rows, blocks;
  int64_t map_stride, column_stride, row_stride, block_stride;
};

inline Activation image_activation(
    const void* data, int64_t maps, int64_t rows, int64_t columns, int64_t blocks) {
  const int64_t pixels = rows * columns;
  return {data,
          maps,
          columns,
          rows,
          blocks,
          pixels * kSpan,
          kSpan,
          columns * kSpan,
          maps * pixels * kSpan};
}

// Features: the blocks of images are the columns of an image of one row.
inline Activation feature_activation(const void* data, int64_t features, int64_t blocks) {
  return {data, features, blocks, 1, 1, kSpan, features * kSpan, kSpan, kSpan};
}

// Boxes of `maps` maps of `columns` neighbouring columns, all lanes or a half of them.
inline TensorMap load_map(
    const char* what, const Activation& a, int maps, int64_t columns, int lanes = 64) {
  return tensor_map(what, Element::bf16, a.data, {64, a.maps, a.columns, a.rows, a.blocks},
                    {a.map_stride, a.column_stride, a.row_stride, a.block_stride},
                    {lanes, maps, int(columns), 1, 1},
                    lanes == 64 ? Swizzle::bytes128 : Swizzle::bytes64);
}

// Boxes of `maps` maps of one pixel, clipped to the maps of a group.
inline TensorMap store_map(const char* what, const Activation& a, int64_t groups, int maps) {
  return tensor_map(what, Element::bf16, a.data,
                    {64, a.maps / groups, a.columns * a.rows, groups, a.blocks},
                    {a.map_stride, a.column_stride, a.maps / groups * a.map_stride, a.block_stride},
                    {64, maps, 1, 1, 1}, Swizzle::bytes128);
}

// The bfloat16 copy [groups][C][R][S][K8] of the weights of K filters over C channels each.
inline TensorMap weight_map(const void* weight,
                            int64_t groups,
                            int64_t C,
                            int64_t R,
                            int64_t S,
                            int64_t K,
                            int filters,
                            int channels,
                            Swizzle swizzle) {
  const int64_t row = (K + 7) / 8 * 8 * 2;
  return tensor_map("weight", Element::bf16, weight, {row / 2, C, S, R, groups},
                    {R * S * row, row, S * row, C * R * S * row}, {filters, channels, int(S), 1, 1},
                    swizzle);
}

}  // namespace convnet
