// A gaussian blur of every map by itself. x and y [N/L][C][H][W][L].
#pragma once
#include <cmath>

#include "shapes.hpp"

namespace convnet {

// y(h,w) = sum over r and s of tap(r) tap(s) x(h + r - size/2, w + s - size/2), with zeros outside of the map; the sum goes
// along the row first. As the taps are symmetric, this is its own gradient: dx is the blur of dy.
void blur(const BlurShape& shape, Precision precision, const void* x, void* y, Stream stream);

// The taps along an axis: exp(-(i - size/2)^2 / (2 std^2)), divided by the sum of all. For shapes that have been checked.
struct BlurTaps {
  float tap[9];
};

inline BlurTaps blur_taps(const BlurShape& shape) {
  double weights[9], total = 0.0;
  for (int64_t i = 0; i < shape.size; ++i) {
    const double distance = static_cast<double>(i - shape.size / 2) / double{shape.std};
    weights[i] = std::exp(-distance * distance / 2.0);
    total += weights[i];
  }
  BlurTaps taps{};
  for (int64_t i = 0; i < shape.size; ++i) taps.tap[i] = static_cast<float>(weights[i] / total);
  return taps;
}

}  // namespace convnet
