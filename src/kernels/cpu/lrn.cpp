// Local response normalisation: runs of pixels and lanes, and of a group's channels.
#include "../lrn.hpp"

#include "checks.hpp"
#include "normalise.hpp"
#include "work.hpp"

namespace convnet {
namespace {

// task(channels, first value, values): runs of channels and of pixels and lanes, of all groups of all image blocks.
template <class Task>
void over_runs(const LrnShape& shape, const Task& task) {
  const int64_t step = shape.H * shape.W * shape.lanes, channels = shape.C / shape.groups;
  const int64_t runs = (step + cpu::kRun - 1) / cpu::kRun,
                parts = (channels + cpu::kChannels - 1) / cpu::kChannels;
  cpu::in_parallel(shape.N / shape.lanes * shape.groups * parts * runs, [&](int64_t index) {
    const int64_t run = index % runs, part = index / runs % parts, group = index / runs / parts;
    const int64_t first = run * cpu::kRun, end = (part + 1) * cpu::kChannels;
    const cpu::Channels at{channels, step, part * cpu::kChannels, end < channels ? end : channels};
    task(at, group * channels * step + first, first + cpu::kRun < step ? cpu::kRun : step - first);
  });
}

}  // namespace

void lrn_forward(const LrnShape& shape, Precision precision, const void* x, void* y, Stream) {
  cpu::check("lrn_forward", precision, shape);
  over_runs(shape, [&](const cpu::Channels& at, int64_t first, int64_t n) {
    float* const memory = cpu::scratch(cpu::Scratch::ring, 2 * n);
    cpu::vectorised([&]() CONVNET_INLINE {
      for (int64_t c = at.begin; c < at.end; ++c)
        cpu::normalise(shape, at, static_cast<const float*>(x) + first, c, n,
                       static_cast<float*>(y) + first + c * at.step, memory);
    });
  });
}

void lrn_backward(
    const LrnShape& shape, Precision precision, const void* dy, const void* x, void* dx, Stream) {
  cpu::check("lrn_backward", precision, shape);
  over_runs(shape, [&](const cpu::Channels& at, int64_t first, int64_t n) {
    float* const memory = cpu::scratch(cpu::Scratch::ring, cpu::gradient_memory(shape, n));
    cpu::vectorised([&]() CONVNET_INLINE {
      const auto slope = [&](int64_t f, float* to) CONVNET_INLINE {
        const float* const from = static_cast<const float*>(dy) + first + f * at.step;
        for (int64_t i = 0; i < n; ++i) to[i] = from[i];
      };
      cpu::lrn_gradient(shape, at, static_cast<const float*>(x) + first, n, slope,
                        static_cast<float*>(dx) + first, false, memory);
    });
  });
}

}  // namespace convnet
