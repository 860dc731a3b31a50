// The bfloat16 copy of a weight.
//
// What       copy(row, column) = weight(row, column) rounded to nearest, ties to even; zero in the
//            padding. It is made where a weight is set; an update writes it along (sgd.cu).
// Tensors    weight float32 [rows][columns], copy bf16 [rows][round_up(columns, 8)].
// Work       one thread per four neighbouring values of the copy, 256 threads per block.
// Shared     none.
// Barriers   none.
// Needs      count whole rows; 16-byte aligned arrays.
// Cost       6 bytes per value: bound by memory.
#include "cast.hpp"

#include "arch/arch.cuh"
#include "tile/quads.cuh"
#include "tile/weight_copy.cuh"

namespace convnet {
namespace {

__global__ void __launch_bounds__(kQuadThreads)
    cast_weight_kernel(int64_t count, CopyRows rows, const float* weight, bf16* copy) {
  begin_kernel();
  const int64_t i = map_index();  // in the copy, whose rows are whole quads
  if (i >= count) return;
  const int64_t row = i / rows.padded;
  store4(copy + i, load_row4(weight + row * rows.columns, rows, i - row * rows.padded));
}

}  // namespace

void cast_weight(int64_t count, int64_t columns, const float* weight, bf16* copy, Stream stream) {
  const CopyRows rows = copy_rows("cast_weight", count, columns);
  const int64_t size = count / columns * rows.padded;
  const Dim3 grid = map_grid("cast_weight", size);
  if (count == 0) return;
  launch(cast_weight_kernel, grid, Dim3(kQuadThreads), 0, stream, size, rows, weight, copy);
}

}  // namespace convnet
