// Channels picked by a table: what groups with random sparse connections read, and its gradient.
#pragma once
#include "shapes.hpp"

namespace convnet {

// y[n,i,h,w] = x[n,table[i],h,w]; x [N/L][C][H][W][L] and y [N/L][K][H][W][L] by precision, table [K] from 0 to C - 1, which
// nothing checks here.
void gather_channels(const GatherShape& shape,
                     Precision precision,
                     const void* x,
                     const int32_t* table,
                     void* y,
                     Stream stream);

// dx[n,c,h,w] = sum of dy[n,i,h,w] over the i with table[i] = c, in ascending order, 0 where there is none; in float32, rounded
// once. Those i of channel c are places[starts[c]] to places[starts[c + 1] - 1]: starts [C + 1], places [K].
void gather_channels_backward(const GatherShape& shape,
                              Precision precision,
                              const void* dy,
                              const int32_t* starts,
                              const int32_t* places,
                              void* dx,
                              Stream stream);

}  // namespace convnet
