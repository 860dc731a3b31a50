// Costs of all features of an image: the sum of squares, and the cross-entropy of logistic outputs.
//
// What       loss = sum over k of term(k), dx = coefficient slope(k) / valid:
//              sum_of_squares          x^2                                            2 x
//              logistic_cross_entropy  t min(log(1 + e^-x), 50) + (1 - t) min(log(1 + e^x), 50)
//                                                                                     y - t
//            with y = 1 / (1 + e^-x). Logarithms are those of 1 + e^-|x|, to which |x| is added on one
//            side: nothing overflows. A loss that is not finite stops the updates of this step.
// Tensors    x, targets t, dx [N/L][K][L] by precision, losses float32 [N]; control: one Control. dx
//            is rounded once.
// Work       64 threads per image (tile/lane_columns.cuh), two passes over the features (sum;
//            gradient), of which the second reads the cache.
// Shared     2048 bytes.
// Barriers   those of reduce() (tile/lane_columns.cuh).
// Needs      lanes a multiple of 8, 1 <= valid <= N.
// Cost       4 bytes per value of x (and of t) read and 4 of dx written, half of it in bf16; two
//            exponentials and a logarithm per value of the cross-entropy: bound by the launch.
#include "costs.hpp"

#include <cmath>

#include "arch/arch.cuh"
#include "tile/lane_columns.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

struct Squares {
  __device__ __forceinline__ static float term(float x, float) { return mul_rn(x, x); }
  __device__ __forceinline__ static float slope(float x, float) { return 2.0f * x; }
};

struct Logistic {
  __device__ __forceinline__ static float term(float x, float t) {
    const float rest = log1pf(expf(-fabsf(x)));  // of the likelier side
    const float one = x < 0.0f ? rest - x : rest, zero = x < 0.0f ? rest : rest + x;
    return add_rn(mul_rn(t, one > kLeastLog ? kLeastLog : one),
                  mul_rn(sub_rn(1.0f, t), zero > kLeastLog ? kLeastLog : zero));
  }
  __device__ __forceinline__ static float slope(float x, float t) {
    const float e = expf(-fabsf(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e) - t;
  }
};

// targets may be x where a cost has none.
template <class Cost, class T>
__global__ void __launch_bounds__(kThreads) cost_kernel(SoftmaxShape shape,
                                                        float coefficient,
                                                        const T* x,
                                                        const T* targets,
                                                        float* losses,
                                                        T* dx,
                                                        Control* control) {
  begin_kernel();
  const auto [segment, n, first] = lane_position(shape.K, shape.lanes);
  const bool exists = n < shape.valid;
  float sum = 0.0f;
  for (int64_t k = segment; k < shape.K; k += kSegments) {
    const int64_t i = first + k * shape.lanes;
    sum = add_rn(sum, Cost::term(load1(x + i), load1(targets + i)));
  }
  sum = reduce(sum, [](float a, float b) { return a + b; });
  if (segment == 0) {
    losses[n] = exists ? sum : 0.0f;
    if (exists && !(fabsf(sum) < INFINITY)) control->stopped = 1;
  }
  if (!dx) return;
  for (int64_t k = segment; k < shape.K; k += kSegments) {
    const int64_t i = first + k * shape.lanes;
    const float slope = mul_rn(coefficient, Cost::slope(load1(x + i), load1(targets + i)));
    store1(dx + i, exists ? slope / static_cast<float>(shape.valid) : 0.0f);
  }
}

template <class Cost>
void run(const char* op,
         const SoftmaxShape& shape,
         Precision precision,
         float coefficient,
         const void* x,
         const void* targets,
         float* losses,
         void* dx,
         Control* control,
         Stream stream) {
  image_blocks(op, shape.N, shape.lanes);  // checks the lanes
  require(shape.valid >= 1 && shape.valid <= shape.N, op,
          ": valid must be 1 to N, got valid=", shape.valid, " N=", shape.N);
  require(shape.K >= 1 && shape.K <= kMaxGrid, op, ": the number of features must be 1 to ",
          kMaxGrid, ", got K=", shape.K);
  require(shape.N / kLanes <= kMaxGrid, op,
          ": the batch is too large for one launch, got N=", shape.N);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(cost_kernel<Cost, T>, Dim3(static_cast<unsigned>(shape.N / kLanes)), Dim3(kThreads),
           sizeof(Columns<float>), stream, shape, coefficient, static_cast<const T*>(x),
           static_cast<const T*>(targets), losses, static_cast<T*>(dx), control);
  });
}

}  // namespace

void sum_of_squares(const SoftmaxShape& shape,
                    Precision precision,
                    float coefficient,
                    const void* x,
                    float* losses,
                    void* dx,
                    Control* control,
                    Stream stream) {
  run<Squares>("sum_of_squares", shape, precision, coefficient, x, x, losses, dx, control, stream);
}

void logistic_cross_entropy(const SoftmaxShape& shape,
                            Precision precision,
                            float coefficient,
                            const void* x,
                            const void* targets,
                            float* losses,
                            void* dx,
                            Control* control,
                            Stream stream) {
  run<Logistic>("logistic_cross_entropy", shape, precision, coefficient, x, targets, losses, dx,
                control, stream);
}

}  // namespace convnet
