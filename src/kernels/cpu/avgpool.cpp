// Average pooling, a channel of an image block at a time, a pixel's lanes at a time.
#include "../avgpool.hpp"

#include "checks.hpp"
#include "level.hpp"
#include "work.hpp"

namespace convnet {
namespace {

// Pixels begin to end - 1 of an axis of `extent`, those that a window of `size` at `at` has of it.
struct Clipped {
  int64_t begin, end;
  CONVNET_INLINE Clipped(int64_t at, int64_t size, int64_t extent)
      : begin(at > 0 ? at : 0), end(at + size < extent ? at + size : extent) {}
  CONVNET_INLINE int64_t count() const { return end - begin; }
};

// The windows along an axis that hold its pixel `at` (in padded coordinates): begin to end - 1.
struct Holding {
  int64_t begin, end;
  CONVNET_INLINE Holding(int64_t at, int64_t size, int64_t stride, int64_t windows)
      : begin(at < size ? 0 : (at - size) / stride + 1),
        end(at / stride < windows ? at / stride + 1 : windows) {}
};

// A whole window of 3 x 3, read once.
CONVNET_INLINE inline void nine(const float* x, int64_t row, int64_t L, float* y) {
  const float* const second = x + row;
  const float* const third = second + row;
  for (int64_t l = 0; l < L; ++l)
    y[l] = (x[l] + x[L + l] + x[2 * L + l] + second[l] + second[L + l] + second[2 * L + l] +
            third[l] + third[L + l] + third[2 * L + l]) /
           9.0f;
}

CONVNET_INLINE inline void averages(const PoolShape& shape, const float* x, float* y) {
  const int64_t L = shape.lanes, W = shape.W, Q = shape.Q;
  for (int64_t p = 0; p < shape.P; ++p) {
    const Clipped rows(p * shape.stride - shape.pad_top, shape.size, shape.H);
    for (int64_t q = 0; q < Q; ++q) {
      const Clipped columns(q * shape.stride - shape.pad_left, shape.size, W);
      float* const out = y + (p * Q + q) * L;
      if (rows.count() == 3 && columns.count() == 3) {
        nine(x + (rows.begin * W + columns.begin) * L, W * L, L, out);
        continue;
      }
      for (int64_t l = 0; l < L; ++l) out[l] = 0.0f;
      for (int64_t h = rows.begin; h < rows.end; ++h)
        for (int64_t w = columns.begin; w < columns.end; ++w) {
          const float* const from = x + (h * W + w) * L;
          for (int64_t l = 0; l < L; ++l) out[l] += from[l];
        }
      const auto pixels = static_cast<float>(rows.count() * columns.count());
      for (int64_t l = 0; l < L; ++l) out[l] /= pixels;
    }
  }
}

CONVNET_INLINE inline void shares(const PoolShape& shape,
                                  const float* dy,
                                  const float* mask,
                                  float* dx) {
  const int64_t L = shape.lanes, size = shape.size, stride = shape.stride;
  for (int64_t h = 0; h < shape.H; ++h) {
    const Holding rows(h + shape.pad_top, size, stride, shape.P);
    for (int64_t w = 0; w < shape.W; ++w) {
      const Holding columns(w + shape.pad_left, size, stride, shape.Q);
      float* const sum = dx + (h * shape.W + w) * L;
      for (int64_t l = 0; l < L; ++l) sum[l] = 0.0f;
      for (int64_t p = rows.begin; p < rows.end; ++p) {
        const int64_t height = Clipped(p * stride - shape.pad_top, size, shape.H).count();
        for (int64_t q = columns.begin; q < columns.end; ++q) {
          const int64_t width = Clipped(q * stride - shape.pad_left, size, shape.W).count();
          const float share = 1.0f / static_cast<float>(height * width);
          const float* const from = dy + (p * shape.Q + q) * L;
          for (int64_t l = 0; l < L; ++l) sum[l] += from[l] * share;
        }
      }
      if (mask) {
        const float* const x = mask + (h * shape.W + w) * L;
        for (int64_t l = 0; l < L; ++l) sum[l] = x[l] > 0.0f ? sum[l] : 0.0f;
      }
    }
  }
}

}  // namespace

void avg_pool_forward(const PoolShape& shape, Precision precision, const void* x, void* y, Stream) {
  cpu::check("avg_pool_forward", precision, shape);
  const int64_t L = shape.lanes, in = shape.H * shape.W * L, out = shape.P * shape.Q * L;
  cpu::in_parallel(shape.N / L * shape.C, [&](int64_t plane) {
    cpu::vectorised([&]() CONVNET_INLINE {
      averages(shape, static_cast<const float*>(x) + plane * in,
               static_cast<float*>(y) + plane * out);
    });
  });
}

void avg_pool_backward(const PoolShape& shape,
                       Precision precision,
                       const void* dy,
                       const void* mask,
                       void* dx,
                       Stream) {
  cpu::check("avg_pool_backward", precision, shape);
  const int64_t L = shape.lanes, in = shape.H * shape.W * L, out = shape.P * shape.Q * L;
  cpu::in_parallel(shape.N / L * shape.C, [&](int64_t plane) {
    cpu::vectorised([&]() CONVNET_INLINE {
      shares(shape, static_cast<const float*>(dy) + plane * out,
             mask ? static_cast<const float*>(mask) + plane * in : nullptr,
             static_cast<float*>(dx) + plane * in);
    });
  });
}

}  // namespace convnet
