// What both modules hold, convnet.kernels._emu (emulator.cpp) and convnet.kernels._gpu (graph.cpp).
#include "info.hpp"
#include "register.hpp"

namespace convnet::bindings {

namespace py = pybind11;

void register_both(py::module_& m) {
  register_convolution(m);
  register_linear(m);
  register_variants(m);
  register_normalise_pool(m);
  register_elementwise(m);
  register_training(m);
  m.def("build_info", [] {
    const BuildInfo info = build_info();
    py::dict entries;
    entries["compiler"] = info.compiler, entries["cuda"] = info.cuda;
    entries["architectures"] = info.architectures, entries["version"] = info.version;
    return entries;
  });
}

}  // namespace convnet::bindings
