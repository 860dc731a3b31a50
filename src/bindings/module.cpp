// What all modules hold: convnet.kernels._cpu (cpu.cpp), _emu (emulator.cpp) and _gpu (graph.cpp).
#include "bind.hpp"
#include "info.hpp"
#include "register.hpp"

namespace convnet::bindings {

std::map<std::string, std::vector<Row>>& signatures() {
  static std::map<std::string, std::vector<Row>> rows;
  return rows;
}

std::size_t& largest_alignment() {
  static std::size_t bytes = 16;
  return bytes;
}

void register_all(py::module_& m) {
  register_convolution(m);
  register_local(m);
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
  m.def("signatures", [] {
    py::dict found;
    for (const auto& [function, rows] : signatures()) {
      py::list arguments;
      for (const auto& [name, kind, written, may_be_null] : rows)
        arguments.append(py::make_tuple(name, kind, written, may_be_null));
      found[py::str(function)] = arguments;
    }
    return found;
  });
}

}  // namespace convnet::bindings
