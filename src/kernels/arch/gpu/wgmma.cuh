// Tensor cores of a warpgroup (sm_90a).
#pragma once

namespace convnet {}  // namespace convnet
