// Tensor copies of sm_90.
#pragma once

namespace convnet {}  // namespace convnet
