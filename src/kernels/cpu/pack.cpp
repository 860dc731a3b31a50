// From images as others hold them to lanes, a plane of all images at a time.
#include "../pack.hpp"

#include "checks.hpp"
#include "work.hpp"

namespace convnet {

void pack(const PackShape& shape, Precision precision, const float* x, void* y, Stream) {
  cpu::fp32_only(precision);
  cpu::check_sizes("pack", shape.N, shape.lanes, {shape.C, shape.H, shape.W, shape.fold});
  require(shape.valid >= 1 && shape.valid <= shape.N,
          "pack: valid must be 1 to N, got valid=", shape.valid, " N=", shape.N);
  require(shape.fold == 1, "pack: images are not folded on a CPU, got fold=", shape.fold);
  const int64_t L = shape.lanes, plane = shape.H * shape.W * L;
  cpu::in_parallel(shape.N / L * shape.C, [&](int64_t task) {
    const int64_t block = task / shape.C, c = task % shape.C;
    float* out = static_cast<float*>(y) + task * plane;
    for (int64_t h = 0; h < shape.H; ++h)
      for (int64_t w = 0; w < shape.W; ++w)
        for (int64_t lane = 0; lane < L; ++lane, ++out) {
          const int64_t n = block * L + lane;
          *out = n < shape.valid ? x[shape.offset + n * shape.steps[0] + c * shape.steps[1] +
                                     h * shape.steps[2] + w * shape.steps[3]]
                                 : 0.0f;
        }
  });
}

}  // namespace convnet
