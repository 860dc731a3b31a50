// mbarriers and named barriers.
#pragma once

namespace convnet {}  // namespace convnet
