// Softmax with cross-entropy loss, its gradient, and the rank of the true class.
//
// What       prob_j = exp(x_j - max) / sum, loss = log(sum) - (x_label - max): the largest term of
//            the sum is 1, so that neither overflows. rank = number of classes that are not behind
//            the label in (descending logit, ascending index); a logit that is not a number is
//            behind nothing, so that a diverged network never counts as right. A loss that is not
//            finite stops the updates of this step: every thread that finds one writes the same 1.
//            dlogits are of the mean over all images of the step: control says how many where these are some.
// Tensors    logits, dlogits [N/L][K][L] by precision, probs float32 alike; labels, ranks int32
//            [N]; losses float32 [N]; control: one Control. Computed in float32, dlogits rounded once.
// Work       64 threads per image (tile/lane_columns.cuh). Three passes over the classes (maximum;
//            sum and rank; outputs), of which all but the first read the cache.
// Shared     1024 bytes: one value, a float or an int, of 64 threads x 4 lanes.
// Barriers   those of reduce() (tile/lane_columns.cuh).
// Needs      lanes a multiple of 8, 1 <= valid <= N.
// Cost       4 bytes per logit read, 4 for each of probs and dlogits written (in bf16 2, 4 and 2);
//            two exponentials per logit: bound by the launch.
#include "softmax.hpp"

#include <cmath>

#include "arch/arch.cuh"
#include "tile/lane_columns.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

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
  const auto [segment, n, first] = lane_position(shape.K, shape.lanes);
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
  const auto images = static_cast<float>(control->images ? control->images : shape.valid);
  for (int64_t k = segment; k < shape.K; k += kSegments) {
    const int64_t i = first + k * shape.lanes;
    const float prob = expf(load1(logits + i) - largest) / sum;
    if (probs) probs[i] = exists ? prob : 0.0f;
    if (dlogits) {
      const float slope = (k == label ? prob - 1.0f : prob) / images;
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
