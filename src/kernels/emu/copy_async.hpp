// Asynchronous copies of sm_80.
#pragma once

namespace convnet {}  // namespace convnet
