// Convolutions of 3 x 3 and 5 x 5 filters at stride 1 by Winograd's F(2x2, RxR) (1980; Lavin and Gray 2016): 2 x 2 outputs
// are made of 16 or 49 products per channel, where their sums have 36 or 100. With the tile d of (R + 1)^2 pixels under them
// and a filter g
//   y = A^T [ (G g G^T) * (B^T d B) ] A,   * element by element, and summed over the channels before the last step
// so that most of the work is products of matrices, one for each element of a transformed tile.
#pragma once
#include <cstdint>

#include "../shapes.hpp"

namespace convnet::cpu {

// Whether it is quicker than the sums: few outputs are thrown away at the rims, lanes make whole vectors, and there are many
// channels and filters.
bool takes_winograd(const ConvShape& shape);

// Where weights lie: that of a tap, from an input channel to a filter of a group, is at
// first[group * by_group + channel * by_channel + tap * by_tap + filter * by_filter].
struct Filters {
  const float* first;
  int64_t by_group, by_channel, by_tap, by_filter;
};

// y [N/L][K][P][Q][L] (+ bias, then ReLU, or 0 where mask is not positive); bias and mask may be null.
void convolve_winograd(const ConvShape& shape,
                       const float* x,
                       const Filters& weight,
                       const float* bias,
                       bool relu,
                       float* y,
                       const float* mask);

// The gradient of the filters, by the same matrices: G^T [ sum of (A dy A^T) * (B^T d B) ] G. Its products are BLAS's.
bool takes_winograd_gradient(const ConvShape& shape);
void winograd_gradient(const ConvShape& shape, const float* x, const float* dy, float* dweight);

}  // namespace convnet::cpu
