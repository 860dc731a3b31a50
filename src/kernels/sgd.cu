// Momentum SGD with weight decay.
//
// What       v = (momentum * v) - (lr * ((weight_decay * w) + g)); w = w + v. Every operation is
//            rounded on its own, so that any device, and NumPy, give the same bits: a resumed or
//            moved run does not drift. Where there is a copy, it gets w rounded to bf16.
// Tensors    weight, velocity, gradient: count contiguous float32 values, any layout; weight and
//            velocity in place. copy (may be null) bf16 [count / columns][round_up(columns, 8)], of
//            which the padding is left alone.
// Work       one thread per four values, 256 threads per block; the last thread takes what is left.
// Shared     none.
// Barriers   none.
// Needs      16-byte aligned arrays; with a copy count whole rows.
// Cost       20 bytes per value (three read, two written), 22 with a copy, and 6 operations: bound
//            by memory.
#include "sgd.hpp"

#include "arch/arch.cuh"
#include "tile/quads.cuh"
#include "tile/weight_copy.cuh"

namespace convnet {
namespace {

struct Rates {
  float lr, momentum, weight_decay;
};

__device__ __forceinline__ void update(Rates rates,
                                       float& weight,
                                       float& velocity,
                                       float gradient) {
  const float slope = add_rn(mul_rn(rates.weight_decay, weight), gradient);
  velocity = sub_rn(mul_rn(rates.momentum, velocity), mul_rn(rates.lr, slope));
  weight = add_rn(weight, velocity);
}

// No copy, one without padding, which lies like the weight, or one with.
enum class Copy { none, plain, padded };

template <Copy kCopy>
__global__ void __launch_bounds__(kQuadThreads) sgd_kernel(int64_t count,
                                                           float* weight,
                                                           float* velocity,
                                                           const float* gradient,
                                                           bf16* copy,
                                                           CopyRows rows,
                                                           Rates rates) {
  begin_kernel();
  int64_t i = map_index();
  if (i + 4 <= count) {
    float4 w = load4(weight + i);
    float4 v = load4(velocity + i);
    const float4 g = load4(gradient + i);
    update(rates, w.x, v.x, g.x);
    update(rates, w.y, v.y, g.y);
    update(rates, w.z, v.z, g.z);
    update(rates, w.w, v.w, g.w);
    store4(velocity + i, v);
    store4(weight + i, w);
    if (kCopy == Copy::plain) store4(copy + i, w);
    if (kCopy == Copy::padded) {
      store1(copy + rows.place(i), w.x);
      store1(copy + rows.place(i + 1), w.y);
      store1(copy + rows.place(i + 2), w.z);
      store1(copy + rows.place(i + 3), w.w);
    }
  } else {
    for (; i < count; ++i) {
      update(rates, weight[i], velocity[i], gradient[i]);
      if (kCopy != Copy::none) store1(copy + rows.place(i), weight[i]);
    }
  }
}

}  // namespace

void sgd(int64_t count,
         float* weight,
         float* velocity,
         const float* gradient,
         bf16* copy,
         int64_t columns,
         float lr,
         float momentum,
         float weight_decay,
         Stream stream) {
  const Dim3 grid = map_grid("sgd", count);
  const CopyRows rows = copy ? copy_rows("sgd", count, columns) : CopyRows{1, 1};
  if (count == 0) return;
  auto* kernel = !copy                         ? sgd_kernel<Copy::none>
                 : rows.padded == rows.columns ? sgd_kernel<Copy::plain>
                                               : sgd_kernel<Copy::padded>;
  launch(kernel, grid, Dim3(kQuadThreads), 0, stream, count, weight, velocity, gradient, copy, rows,
         Rates{lr, momentum, weight_decay});
}

}  // namespace convnet
