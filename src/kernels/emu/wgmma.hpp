// Tensor cores of a warpgroup.
#pragma once

namespace convnet {}  // namespace convnet
