// The one file that is compiled with what the build system knows, once for each module.
#include "info.hpp"

namespace convnet::bindings {

BuildInfo build_info() {
  return {CONVNET_COMPILER, CONVNET_CUDA_VERSION, CONVNET_ARCHITECTURES, CONVNET_VERSION};
}

}  // namespace convnet::bindings
