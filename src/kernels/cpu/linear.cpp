// The three passes of a fully-connected layer: products whose work is cut along its features.
#include <algorithm>
#include <vector>

#include "../gemm.hpp"
#include "checks.hpp"
#include "direct.hpp"
#include "level.hpp"
#include "random.hpp"
#include "sums.hpp"
#include "update.hpp"
#include "work.hpp"

namespace convnet {
namespace {

constexpr int64_t kFeatures = 256;  // per product
// Floats of a weight's gradient that are made and used in the cache.
constexpr int64_t kGradient = 1 << 17;

// Features k0 to k1 of y = weight^T x for the lanes of a block. The weight is read once, where it lies, and sums stay in
// the cache; or else by BLAS, which copies it first.
void features(const LinearShape& shape,
              const float* x,
              const float* weight,
              int64_t k0,
              int64_t k1,
              float* y) {
  const int64_t C = shape.C, K = shape.K, L = shape.lanes, n = k1 - k0;
  if (!cpu::takes_direct_features(shape)) {
    cpu::product(n, L, C, {weight + k0, K, true}, {x, L}, y, L);
    return;
  }
  float* const sums = cpu::scratch(cpu::Scratch::columns, L * n);  // [lane][feature]
  cpu::feature_sums(shape, x, weight + k0, n, sums);
  cpu::vectorised([&]() CONVNET_INLINE {
    for (int64_t k = 0; k < n; ++k)
      for (int64_t l = 0; l < L; ++l) y[k * L + l] = sums[l * n + k];
  });
}

// Calls `use(first, last)` for the pieces of the weight's rows whose gradients are made at a time. The same with and
// without an update: in which order BLAS sums may depend on how many rows there are.
template <typename Use>
void in_gradient_pieces(const LinearShape& shape, Use use) {
  cpu::in_pieces(shape.C, std::max<int64_t>(1, kGradient / shape.K), use);
}

// Gradient of rows first to last of the weight: x dy^T, summed over the image blocks in order.
void gradient_rows(const LinearShape& shape,
                   const void* dy,
                   const void* x,
                   int64_t first,
                   int64_t last,
                   float* to) {
  const int64_t L = shape.lanes;
  for (int64_t block = 0; block < shape.N / L; ++block)
    cpu::product(
        last - first, shape.K, L, {static_cast<const float*>(x) + (block * shape.C + first) * L, L},
        {static_cast<const float*>(dy) + block * shape.K * L, L, true}, to, shape.K, block > 0);
}

void bias_gradient(const LinearShape& shape, const void* dy, float* dbias) {
  if (!dbias) return;
  const int64_t L = shape.lanes;
  cpu::vectorised([&]() CONVNET_INLINE {
    for (int64_t k = 0; k < shape.K; ++k) {
      dbias[k] = 0.0f;
      for (int64_t block = 0; block < shape.N / L; ++block)
        dbias[k] += cpu::sum_of(static_cast<const float*>(dy) + (block * shape.K + k) * L, L);
    }
  });
}

}  // namespace

int64_t linear_workspace(const LinearShape& shape, Precision precision) {
  cpu::check("linear_workspace", precision, shape);
  return 0;
}

void linear_forward(const LinearShape& shape,
                    Precision precision,
                    const void* x,
                    const void* weight,
                    const float* bias,
                    void* y,
                    bool relu,
                    const std::optional<DropoutShape>& dropout,
                    const Control* control,
                    float*,
                    bool accumulate,
                    Stream) {
  cpu::check("linear_forward", precision, shape);
  if (dropout) {
    cpu::check("linear_forward", precision, *dropout);
    require(dropout->N == shape.N && dropout->features == shape.K && dropout->lanes == shape.lanes,
            "linear_forward: dropout must be of y, N=", shape.N, " features=", shape.K,
            " lanes=", shape.lanes);
  }
  const int64_t L = shape.lanes, K = shape.K;
  // whole cache lines of several vectors
  const int64_t piece = std::clamp((K / cpu::kTasks + 63) / 64 * 64, int64_t{64}, kFeatures);
  const int64_t cuts = (K + piece - 1) / piece;
  const uint64_t threshold = dropout && control ? cpu::threshold(*dropout) : 0;
  cpu::in_parallel(shape.N / L * cuts, [&](int64_t index) {
    const int64_t block = index / cuts, k0 = index % cuts * piece, k1 = std::min(k0 + piece, K);
    float* const out = static_cast<float*>(y) + (block * K + k0) * L;
    float* const old = accumulate ? cpu::scratch(cpu::Scratch::kept, (k1 - k0) * L) : nullptr;
    if (accumulate) std::copy(out, out + (k1 - k0) * L, old);
    features(shape, static_cast<const float*>(x) + block * shape.C * L,
             static_cast<const float*>(weight), k0, k1, out);
    cpu::vectorised([&]() CONVNET_INLINE {
      for (int64_t k = k0; k < k1; ++k) {
        float* const row = out + (k - k0) * L;
        const float b = bias ? bias[k] : 0.0f;
        for (int64_t l = 0; l < L; ++l) {
          float value = bias ? row[l] + b : row[l];
          if (accumulate) value += old[(k - k0) * L + l];
          row[l] = relu && value <= 0.0f ? 0.0f : value;
        }
        if (dropout && control)
          for (int64_t l = 0; l < L; ++l)
            row[l] *= cpu::keeps(*dropout, threshold, *control, block * L + l, k) ? 1.0f : 0.0f;
        else if (dropout)
          for (int64_t l = 0; l < L; ++l) row[l] *= 1.0f - dropout->p;
      }
    });
  });
}

void linear_backward_data(const LinearShape& shape,
                          Precision precision,
                          const void* dy,
                          const void* weight,
                          void* dx,
                          const void* mask,
                          float*,
                          Stream) {
  cpu::check("linear_backward_data", precision, shape);
  const int64_t L = shape.lanes, C = shape.C,
                piece = std::min(kFeatures, (C + cpu::kTasks - 1) / cpu::kTasks);
  const int64_t cuts = (C + piece - 1) / piece;
  cpu::in_parallel(shape.N / L * cuts, [&](int64_t index) {
    const int64_t block = index / cuts, c0 = index % cuts * piece, c1 = std::min(c0 + piece, C);
    const int64_t at = (block * C + c0) * L, n = (c1 - c0) * L;
    float* const out = static_cast<float*>(dx) + at;
    const float* const rows = static_cast<const float*>(weight) + c0 * shape.K;
    const float* const from = static_cast<const float*>(dy) + block * shape.K * L;
    if (cpu::takes_direct_inputs(shape))
      cpu::input_gradients(shape, from, rows, c1 - c0, out);
    else
      cpu::product(c1 - c0, L, shape.K, {rows, shape.K}, {from, L}, out, L);
    if (mask)
      cpu::vectorised([&]() CONVNET_INLINE {
        const float* const output = static_cast<const float*>(mask) + at;
        for (int64_t i = 0; i < n; ++i) out[i] = output[i] > 0.0f ? out[i] : 0.0f;
      });
  });
}

void linear_backward_filter(const LinearShape& shape,
                            Precision precision,
                            const void* dy,
                            const void* x,
                            float* dweight,
                            float* dbias,
                            float*,
                            Stream) {
  cpu::check("linear_backward_filter", precision, shape);
  in_gradient_pieces(shape, [&](int64_t first, int64_t last) {
    gradient_rows(shape, dy, x, first, last, dweight + first * shape.K);
  });
  bias_gradient(shape, dy, dbias);
}

void linear_backward_filter_update(const LinearShape& shape,
                                   Precision precision,
                                   const void* dy,
                                   const void* x,
                                   float* weight,
                                   float* velocity,
                                   bf16* copy,
                                   float* dbias,
                                   Control* control,
                                   float rate,
                                   float decay,
                                   float momentum,
                                   float*,
                                   Stream) {
  cpu::check("linear_backward_filter_update", copy ? Precision::bf16 : precision, shape);
  const cpu::Rates rates(*control, {rate, decay, momentum});
  if (!control->stopped)
    in_gradient_pieces(shape, [&](int64_t first, int64_t last) {
      const int64_t at = first * shape.K, n = (last - first) * shape.K;
      float* const gradient = cpu::scratch(cpu::Scratch::gradient, n);
      gradient_rows(shape, dy, x, first, last, gradient);
      cpu::vectorised([&]() CONVNET_INLINE {
        if (!cpu::update(n, weight + at, velocity + at, gradient, rates)) cpu::spoil(control);
      });
    });
  bias_gradient(shape, dy, dbias);
}

}  // namespace convnet
