// Where taps lie in the weight of a folded convolution (fold.hpp): tap (r, t) of channel c is tap (r/s, t/s) of channel
// c*s*s + r%s*s + t%s.
#pragma once
#include <cstdint>

#include "../arch/arch.cuh"
#include "../check.hpp"
#include "../shapes.hpp"

namespace convnet {

struct Folding {
  int s;
  int R, S, folded_R, folded_S;  // taps

  // Where row (c, r, t) of the weight lies among the rows of the folded one.
  __device__ __forceinline__ int64_t place(int64_t row) const {
    const int64_t line = row / S, c = line / R;
    const int r = static_cast<int>(line - c * R), t = static_cast<int>(row - line * S);
    const int64_t plane = (c * s + r % s) * s + t % s;
    return (plane * folded_R + r / s) * folded_S + t / s;
  }
};

// Of a convolution before folding; throws where no weight has this shape.
inline Folding folding(const char* op, const ConvShape& shape) {
  require(shape.groups >= 1 && shape.C >= 1 && shape.K >= 1 && shape.C % shape.groups == 0 &&
              shape.K % shape.groups == 0,
          op, ": groups must divide channels and filters, got C=", shape.C, " K=", shape.K,
          " groups=", shape.groups);
  require(shape.R >= 1 && shape.S >= 1 && shape.R <= 65535 && shape.S <= 65535 &&
              shape.stride >= 1 && shape.stride <= 255,
          op, ": filters must be 1 to 65535 wide and high and the stride 1 to 255, got R=", shape.R,
          " S=", shape.S, " stride=", shape.stride);
  const int64_t s = shape.stride;
  return Folding{static_cast<int>(s), static_cast<int>(shape.R), static_cast<int>(shape.S),
                 static_cast<int>((shape.R + s - 1) / s), static_cast<int>((shape.S + s - 1) / s)};
}

}  // namespace convnet
