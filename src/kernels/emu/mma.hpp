// Tensor cores of a warp, and the matrix loads and stores that feed them.
#pragma once

namespace convnet {}  // namespace convnet
