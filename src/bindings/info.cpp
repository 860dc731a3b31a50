// How this module was built, for convnet-info and bug reports.
#include <map>
#include <string>

#include <pybind11/stl.h>

#include "register.hpp"

namespace convnet::bindings {

void register_info(pybind11::module_& m) {
  m.def("build_info", [] {
    return std::map<std::string, std::string>{{"compiler", CONVNET_COMPILER},
                                              {"cuda", CONVNET_CUDA_VERSION},
                                              {"architectures", CONVNET_ARCHITECTURES},
                                              {"version", CONVNET_VERSION}};
  });
}

}  // namespace convnet::bindings
