// Momentum SGD with weight decay, of one tensor or of many in one launch.
//
// What       v = (momentum * v) - (lr * ((weight_decay * w) + g)); w = w + v (tile/update.cuh). Where
//            there is a copy, it gets w rounded to bf16.
// Tensors    of each: weight, velocity, gradient: count contiguous float32 values, any layout;
//            weight and velocity in place. copy (may be null) bf16 [count / columns][round_up(
//            columns, 8)], of which the padding is left alone. control: one Control, of which only
//            `spoiled` is ever written.
// Work       one thread per four values, 256 threads per block; a block belongs to one tensor, which
//            it finds among the launch's parameters by its number. The last thread of a tensor takes
//            what is left.
// Shared     none.
// Barriers   none.
// Needs      at most kMostUpdates tensors; 16-byte aligned arrays; with a copy count whole rows.
// Cost       20 bytes per value (three read, two written), 22 with a copy, and 6 operations: bound
//            by memory.
#include "sgd.hpp"

#include "arch/arch.cuh"
#include "tile/quads.cuh"
#include "tile/update.cuh"
#include "tile/weight_copy.cuh"

namespace convnet {
namespace {

struct Part {
  Update update;
  CopyRows rows;
  unsigned end;  // the block behind its last one
};

struct Parts {
  Part part[kMostUpdates];
};

__global__ void __launch_bounds__(kQuadThreads)
    sgd_kernel(const __grid_constant__ Parts parts, Control* control) {
  begin_kernel();
  int index = 0;
  unsigned first_block = 0;
  while (blockIdx.x >= parts.part[index].end) first_block = parts.part[index++].end;
  const Part& part = parts.part[index];
  const Update& u = part.update;
  const Rates rates = rates_of(control, u.factors);
  int64_t i = 4 * (int64_t{blockIdx.x - first_block} * kQuadThreads + threadIdx.x);
  if (i + 4 <= u.count) {
    float4 w = load4(u.weight + i);
    float4 v = load4(u.velocity + i);
    const float4 g = load4(u.gradient + i);
    if (rates.stopped) return;  // behind the loads, which do not wait for it
    update(rates, w, v, g);
    store4(u.velocity + i, v);
    store4(u.weight + i, w);
    if (!u.copy) return;
    if (part.rows.padded == part.rows.columns) {
      store4(u.copy + i, w);
    } else {
      store1(u.copy + part.rows.place(i), w.x);
      store1(u.copy + part.rows.place(i + 1), w.y);
      store1(u.copy + part.rows.place(i + 2), w.z);
      store1(u.copy + part.rows.place(i + 3), w.w);
    }
  } else if (!rates.stopped) {
    for (; i < u.count; ++i) {
      update(rates, u.weight[i], u.velocity[i], u.gradient[i]);
      if (u.copy) store1(u.copy + part.rows.place(i), u.weight[i]);
    }
  }
}

void run(const char* op, const Updates& updates, Control* control, Stream stream) {
  require(updates.count >= 0 && updates.count <= kMostUpdates, op, ": takes at most ", kMostUpdates,
          " tensors, got ", updates.count, "; update the rest in another call");
  Parts parts{};
  int64_t blocks = 0;
  for (int i = 0; i < updates.count; ++i) {
    const Update& u = updates.tensor[i];
    blocks += map_grid(op, u.count).x;
    require(blocks <= kMaxGrid, op, ": there are too many values for one launch, got ", blocks,
            " blocks of 1024; update some in another call");
    parts.part[i] = {u, u.copy ? copy_rows(op, u.count, u.columns) : CopyRows{1, 1},
                     static_cast<unsigned>(blocks)};
  }
  if (blocks == 0) return;
  launch(sgd_kernel, Dim3(static_cast<unsigned>(blocks)), Dim3(kQuadThreads), 0, stream, parts,
         control);
}

}  // namespace

void sgd_many(const Updates& updates, Control* control, Stream stream) {
  run("sgd_many", updates, control, stream);
}

void sgd(int64_t count,
         float* weight,
         float* velocity,
         const float* gradient,
         bf16* copy,
         int64_t columns,
         Control* control,
         float rate,
         float decay,
         float momentum,
         Stream stream) {
  const Factors factors{rate, decay, momentum};
  run("sgd", {1, {{count, weight, velocity, gradient, copy, columns, factors}}}, control, stream);
}

}  // namespace convnet
