// Costs of all features of an image, of which one is that of its class.
//
// What       loss = sum over k of term(k), dx = coefficient slope(k) / images: the terms and slopes that
//            costs.hpp lists, t being 1 for the label and 0 elsewhere. Logarithms of logistic outputs are
//            those of 1 + e^-|x|, to which |x| is added on one side: nothing overflows. A loss that is
//            not finite stops the updates of this step.
// Tensors    x, dx [N/L][K][L] by precision, labels int32 [N], losses float32 [N]; control: one Control.
//            dx is rounded once.
// Work       64 threads per image (tile/lane_columns.cuh), two passes over the features (sum;
//            gradient), of which the second reads the cache.
// Shared     1024 bytes.
// Barriers   those of reduce() (tile/lane_columns.cuh).
// Needs      lanes a multiple of 8, 1 <= valid <= N.
// Cost       4 bytes per value of x read and 4 of dx written, half of it in bf16; two exponentials and
//            a logarithm per value of the logistic cross-entropy: bound by the launch.
#include "costs.hpp"

#include <cmath>

#include "arch/arch.cuh"
#include "tile/lane_columns.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

// At most kLeastLog; NaN stays.
__device__ __forceinline__ float at_most(float v) { return v > kLeastLog ? kLeastLog : v; }

struct Squares {
  __device__ __forceinline__ static float term(float x, bool) { return mul_rn(x, x); }
  __device__ __forceinline__ static float slope(float x, bool) { return 2.0f * x; }
};

struct SquaredError {
  __device__ __forceinline__ static float term(float x, bool label) {
    const float d = x - (label ? 1.0f : 0.0f);
    return mul_rn(d, d);
  }
  __device__ __forceinline__ static float slope(float x, bool label) {
    return 2.0f * (x - (label ? 1.0f : 0.0f));
  }
};

struct LogSquaredError {
  __device__ __forceinline__ static float term(float x, bool label) {
    const float d = x - (label ? 1.0f : 0.0f);
    return log1pf(mul_rn(d, d));
  }
  __device__ __forceinline__ static float slope(float x, bool label) {
    const float d = x - (label ? 1.0f : 0.0f);
    return 2.0f * d / add_rn(1.0f, mul_rn(d, d));
  }
};

struct CrossEntropy {
  // What should be 1; NaN where x is no probability.
  __device__ __forceinline__ static float right(float x, bool label) {
    return x >= 0.0f && x <= 1.0f ? (label ? x : 1.0f - x) : NAN;
  }
  __device__ __forceinline__ static float term(float x, bool label) {
    return at_most(-logf(right(x, label)));
  }
  __device__ __forceinline__ static float slope(float x, bool label) {
    const float p = right(x, label);
    if (-logf(p) > kLeastLog) return 0.0f;
    return (label ? -1.0f : 1.0f) / p;
  }
};

struct LogisticCrossEntropy {
  __device__ __forceinline__ static float term(float x, bool label) {
    const float rest = log1pf(expf(-fabsf(x)));  // of the likelier side
    return at_most((x < 0.0f) == label ? rest + fabsf(x) : rest);
  }
  __device__ __forceinline__ static float slope(float x, bool label) {
    const float e = expf(-fabsf(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e) - (label ? 1.0f : 0.0f);
  }
};

template <class Terms, class T>
__global__ void __launch_bounds__(kThreads) cost_kernel(SoftmaxShape shape,
                                                        float coefficient,
                                                        const T* x,
                                                        const int32_t* labels,
                                                        float* losses,
                                                        T* dx,
                                                        Control* control) {
  begin_kernel();
  const auto [segment, n, first] = lane_position(shape.K, shape.lanes);
  const bool exists = n < shape.valid;
  const int64_t label = exists && labels ? labels[n] : 0;
  const bool known = label >= 0 && label < shape.K;
  float sum = 0.0f;
  for (int64_t k = segment; k < shape.K; k += kSegments)
    sum = add_rn(sum, Terms::term(load1(x + first + k * shape.lanes), k == label));
  sum = reduce(sum, [](float a, float b) { return a + b; });
  if (!known) sum = NAN;
  if (segment == 0) {
    losses[n] = exists ? sum : 0.0f;
    if (exists && !(fabsf(sum) < INFINITY)) control->stopped = 1;
  }
  if (!dx) return;
  const auto images = static_cast<float>(control->images ? control->images : shape.valid);
  for (int64_t k = segment; k < shape.K; k += kSegments) {
    const int64_t i = first + k * shape.lanes;
    const float slope = mul_rn(coefficient, Terms::slope(load1(x + i), k == label));
    store1(dx + i, !exists ? 0.0f : known ? slope / images : NAN);
  }
}

}  // namespace

void cost(const SoftmaxShape& shape,
          Precision precision,
          Cost kind,
          float coefficient,
          const void* x,
          const int32_t* labels,
          float* losses,
          void* dx,
          Control* control,
          Stream stream) {
  const char* op = "cost";
  image_blocks(op, shape.N, shape.lanes);  // checks the lanes
  require(shape.valid >= 1 && shape.valid <= shape.N, op,
          ": valid must be 1 to N, got valid=", shape.valid, " N=", shape.N);
  require(shape.K >= 1 && shape.K <= kMaxGrid, op, ": the number of features must be 1 to ",
          kMaxGrid, ", got K=", shape.K);
  require(shape.N / kLanes <= kMaxGrid, op,
          ": the batch is too large for one launch, got N=", shape.N);
  require(labels || kind == Cost::squares, op, ": labels are required for all but squares");
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    const auto run = [&](auto terms) {
      launch(cost_kernel<decltype(terms), T>, Dim3(static_cast<unsigned>(shape.N / kLanes)),
             Dim3(kThreads), sizeof(Columns<float>), stream, shape, coefficient,
             static_cast<const T*>(x), labels, losses, static_cast<T*>(dx), control);
    };
    switch (kind) {
      case Cost::squares:
        return run(Squares{});
      case Cost::squared_error:
        return run(SquaredError{});
      case Cost::log_squared_error:
        return run(LogSquaredError{});
      case Cost::cross_entropy:
        return run(CrossEntropy{});
      case Cost::logistic_cross_entropy:
        return run(LogisticCrossEntropy{});
    }
  });
}

}  // namespace convnet
