// What the module tells of itself: how it was built, for convnet-info and bug reports, and what its functions take.
#include <map>
#include <string>

#include <pybind11/stl.h>

#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {

std::map<std::string, std::vector<Row>>& signatures() {
  static std::map<std::string, std::vector<Row>> rows;
  return rows;
}

void register_info(pybind11::module_& m) {
  m.def("build_info", [] {
    return std::map<std::string, std::string>{{"compiler", CONVNET_COMPILER},
                                              {"cuda", CONVNET_CUDA_VERSION},
                                              {"architectures", CONVNET_ARCHITECTURES},
                                              {"version", CONVNET_VERSION}};
  });
  m.def("signatures", [] { return signatures(); });
}

}  // namespace convnet::bindings
