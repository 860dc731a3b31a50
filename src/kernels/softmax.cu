// Softmax with cross-entropy loss, its gradient, and the rank of the true class.
//
// What       prob_j = exp(x_j - max) / sum, loss = log(sum) - (x_label - max): the largest term of
//            the sum is 1, so that neither overflows. rank = number of classes that are not behind
//            the label in (descending logit, ascending index); a logit that is not a number is
//            behind nothing, so that a diverged network never counts as right. A loss that is not
//            finite stops the updates of this step: every thread that finds one writes the same 1.
// Tensors    logits, dlogits [N/L][K][L] by precision, probs float32 alike; labels, ranks int32
//            [N]; losses float32 [N]; control: one Control. Computed in float32, dlogits rounded once.
// Work       one block of 512 threads per 8 neighbouring lanes: 64 threads share the K classes of a
//            lane, so that a warp reads four runs of 8 lanes, and even a small batch occupies
//            several multiprocessors. Three passes over the classes (maximum; sum and rank;
//            outputs), of which all but the first read the cache.
// Shared     2048 bytes: one value, a float or an int, of 64 threads x 8 lanes.
// Barriers   those of reduce(), below.
// Needs      lanes a multiple of 8, 1 <= valid <= N.
// Cost       4 bytes per logit read, 4 for each of probs and dlogits written (in bf16 2, 4 and 2);
//            two exponentials per logit: bound by the launch.
#include "softmax.hpp"

#include <cmath>

#include "arch/arch.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

constexpr int kLanes = 8;      // 32 bytes of float32, the unit of memory traffic
constexpr int kSegments = 64;  // threads per lane
constexpr int kThreads = kLanes * kSegments;

template <class T>
struct Columns {
  T value[kSegments][kLanes];
};

// Combines the values of one lane's threads pairwise, in an order that depends on kSegments alone.
// Returns it to all of them.
template <class T, class Combine>
__device__ __forceinline__ T reduce(T mine, Combine combine) {
  Columns<T>& columns = shared_storage<Columns<T>>();
  const int lane = static_cast<int>(threadIdx.x) % kLanes,
            segment = static_cast<int>(threadIdx.x) / kLanes;
  columns.value[segment][lane] = mine;
#pragma unroll
  for (int half = kSegments / 2; half > 0; half /= 2) {
    __syncthreads();  // the values of the upper half are there
    if (segment < half)
      columns.value[segment][lane] =
          combine(columns.value[segment][lane], columns.value[segment + half][lane]);
  }
  __syncthreads();  // the result is there
  const T result = columns.value[0][lane];
  __syncthreads();  // everybody has read it: the next reduction may overwrite it
  return result;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    softmax_cross_entropy_kernel(SoftmaxShape shape,
                                 const T* logits,
                                 const int32_t* labels,
                                 float* __restrict__ losses,
                                 int32_t* __restrict__ ranks,
                                 float* __restrict__ probs,
                                 T* __restrict__ dlogits,
                                 Control* __restrict__ control) {
  begin_kernel();
  const int segment = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t n = int64_t{blockIdx.x} * kLanes + threadIdx.x % kLanes;
  const int64_t block = blockIdx.x / static_cast<unsigned>(shape.lanes / kLanes);
  const int64_t first =
      block * shape.K * shape.lanes + (n - block * shape.lanes);  // class 0 of image n
  const bool exists = n < shape.valid;
  const int32_t label = exists ? labels[n] : 0;
  const bool known = label >= 0 && label < shape.K;
  const float x_label = known ? load1(logits + first + label * shape.lanes) : NAN;

  float largest = -INFINITY;
  for (int64_t k = segment; k < shape.K; k += kSegments)
    largest = fmaxf(largest, load1(logits + first + k * shape.lanes));
  largest = reduce(largest, [](float a, float b) { return fmaxf(a, b); });

  float sum = 0.0f;
  int before = 0;
  for (int64_t k = segment; k < shape.K; k += kSegments) {
    const float x = load1(logits + first + k * shape.lanes);
    sum += expf(x - largest);
    const bool behind = x < x_label || (x == x_label && k >= label);
    before += !behind && k != label;
  }
  sum = reduce(sum, [](float a, float b) { return a + b; });
  before = reduce(before, [](int a, int b) { return a + b; });

  if (segment == 0) {
    const float loss = exists ? logf(sum) - (x_label - largest) : 0.0f;
    losses[n] = loss;
    if (!(fabsf(loss) < INFINITY)) control->stopped = 1;
    ranks[n] = !exists ? 0 : known ? before : static_cast<int32_t>(shape.K);
  }
  if (!probs && !dlogits) return;
  for (int64_t k = segment; k < shape.K; k += kSegments) {
    const int64_t i = first + k * shape.lanes;
    const float prob = expf(load1(logits + i) - largest) / sum;
    if (probs) probs[i] = exists ? prob : 0.0f;
    if (dlogits) {
      const float slope = (k == label ? prob - 1.0f : prob) / static_cast<float>(shape.valid);
      store1(dlogits + i, !exists ? 0.0f : known ? slope : NAN);
    }
  }
}

}  // namespace

void softmax_cross_entropy(const SoftmaxShape& shape,
                           Precision precision,
                           const void* logits,
                           const int32_t* labels,
                           float* losses,
                           int32_t* ranks,
                           float* probs,
                           void* dlogits,
                           Control* control,
                           Stream stream) {
  const char* op = "softmax_cross_entropy";
  image_blocks(op, shape.N, shape.lanes);  // checks the lanes
  require(shape.valid >= 1 && shape.valid <= shape.N, op,
          ": valid must be 1 to N, got valid=", shape.valid, " N=", shape.N);
  require(shape.K >= 1 && shape.K <= kMaxGrid, op, ": the number of classes must be 1 to ",
          kMaxGrid, ", got K=", shape.K);
  require(shape.N / kLanes <= kMaxGrid, op,
          ": the batch is too large for one launch, got N=", shape.N);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(softmax_cross_entropy_kernel<T>, Dim3(static_cast<unsigned>(shape.N / kLanes)),
           Dim3(kThreads), sizeof(Columns<float>), stream, shape, static_cast<const T*>(logits),
           labels, losses, ranks, probs, static_cast<T*>(dlogits), control);
  });
}

}  // namespace convnet
