// Momentum SGD with weight decay, of one tensor or of many in one launch.
//
// What       v = (momentum * v) - (lr * ((weight_decay * w) + g)); w = w + v (tile/update.cuh). Where
//            there is a copy, it gets w rounded to bf16. g and copy of a folded convolution's weight
//            lie where its taps fold to (tile/folding.cuh).
// Tensors    of each: weight, velocity, gradient: count contiguous float32 values, any layout;
//            weight and velocity in place. copy (may be null) bf16 [count / columns][round_up(
//            columns, 8)], of which the padding is left alone. Of a folded weight gradient and copy
//            as in fold.cu; what has no original is neither read nor written. control: one Control,
//            of which only `spoiled` is ever written.
// Work       one thread per four values, 256 threads per block; a block belongs to one tensor, which
//            it finds among the launch's parameters by its number. The last thread of a tensor takes
//            what is left. Divisions find the place of a folded weight's row, once for a thread where
//            rows are whole quads.
// Shared     none.
// Barriers   none.
// Needs      at most kMostUpdates tensors; 16-byte aligned arrays; with a copy count whole rows; of
//            a folded weight a copy, and what fold.cu needs.
// Cost       20 bytes per value (three read, two written), 22 with a copy (24 with one in float32),
//            and 6 operations: bound by memory.
#include "sgd.hpp"

#include "arch/arch.cuh"
#include "tile/folding.cuh"
#include "tile/quads.cuh"
#include "tile/update.cuh"
#include "tile/weight_copy.cuh"

namespace convnet {
namespace {

struct Part {
  int64_t count;
  float* weight;
  float* velocity;
  const float* gradient;
  void* copy;
  CopyRows rows;
  Factors factors;
  bool folded, rounded;  // only a folded copy may be of floats
  Folding folding;
  unsigned end;  // the block behind its last one
};

struct Parts {
  Part part[kMostUpdates];
};

// Values i to i + 3 of a folded weight, whose copy is made of T.
template <class T>
__device__ __forceinline__ void update_folded(const Part& part, const Rates& rates, int64_t i) {
  const int64_t columns = part.rows.columns, padded = part.rows.padded;
  T* copy = static_cast<T*>(part.copy);
  if (columns % 4 == 0) {  // then they are of one row
    if (i >= part.count) return;
    const int64_t row = i / columns, k = i - row * columns, place = part.folding.place(row);
    float4 w = load4(part.weight + i);
    float4 v = load4(part.velocity + i);
    const float4 g = load4(part.gradient + place * columns + k);
    if (rates.stopped) return;
    update(rates, w, v, g);
    store4(part.velocity + i, v);
    store4(part.weight + i, w);
    store4(copy + place * padded + k, w);
  } else if (!rates.stopped) {
    for (const int64_t end = min(i + 4, part.count); i < end; ++i) {
      const int64_t row = i / columns, k = i - row * columns, place = part.folding.place(row);
      update(rates, part.weight[i], part.velocity[i], part.gradient[place * columns + k]);
      store1(copy + place * padded + k, part.weight[i]);
    }
  }
}

__global__ void __launch_bounds__(kQuadThreads)
    sgd_kernel(const __grid_constant__ Parts parts, Control* control) {
  begin_kernel();
  int index = 0;
  unsigned first_block = 0;
  while (blockIdx.x >= parts.part[index].end) first_block = parts.part[index++].end;
  const Part& part = parts.part[index];
  const Rates rates = rates_of(control, part.factors);
  int64_t i = 4 * (int64_t{blockIdx.x - first_block} * kQuadThreads + threadIdx.x);
  if (part.folded) {
    if (part.rounded)
      update_folded<bf16>(part, rates, i);
    else
      update_folded<float>(part, rates, i);
    return;
  }
  bf16* copy = static_cast<bf16*>(part.copy);
  if (i + 4 <= part.count) {
    float4 w = load4(part.weight + i);
    float4 v = load4(part.velocity + i);
    const float4 g = load4(part.gradient + i);
    if (rates.stopped) return;  // behind the loads, which do not wait for it
    update(rates, w, v, g);
    store4(part.velocity + i, v);
    store4(part.weight + i, w);
    if (!copy) return;
    if (part.rows.padded == part.rows.columns) {
      store4(copy + i, w);
    } else {
      store1(copy + part.rows.place(i), w.x);
      store1(copy + part.rows.place(i + 1), w.y);
      store1(copy + part.rows.place(i + 2), w.z);
      store1(copy + part.rows.place(i + 3), w.w);
    }
  } else if (!rates.stopped) {
    for (; i < part.count; ++i) {
      update(rates, part.weight[i], part.velocity[i], part.gradient[i]);
      if (copy) store1(copy + part.rows.place(i), part.weight[i]);
    }
  }
}

Part part_of(const char* op, const Update& u) {
  Part part{u.count,   u.weight, u.velocity, u.gradient, u.copy, {1, 1},
            u.factors, false,    false,      {},         0};
  if (u.folded) {
    const auto& [shape, precision] = *u.folded;
    part.folding = folding(op, shape);
    const int64_t columns = shape.K / shape.groups, count = shape.C * shape.R * shape.S * columns;
    require(u.count == count, op, ": a folded weight must have the ", count,
            " values of its shape, got ", u.count);
    require(u.copy, op, ": a folded weight needs a copy, got a null address");
    part.folded = true, part.rounded = precision == Precision::bf16;
    part.rows = copy_rows(op, count, columns);
    if (!part.rounded) part.rows.padded = part.rows.columns;
  } else if (u.copy) {
    part.rows = copy_rows(op, u.count, u.columns);
  }
  return part;
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
    parts.part[i] = part_of(op, u);
    parts.part[i].end = static_cast<unsigned>(blocks);
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
  const Update update{count, weight, velocity, gradient, copy, columns, factors, std::nullopt};
  run("sgd", {1, {update}}, control, stream);
}

}  // namespace convnet
