// The emulator's own switches: the order in which threads run, and how many blocks run at a time.
#include "../kernels/emu/launch.hpp"
#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {

void register_emulator(py::module_& m) {
  bind(m, "seed_order", &emu::seed_order, {"seed"});
  bind(m, "set_threads", &emu::set_threads, {"count"});
  bind(m, "set_architecture", &emu::set_architecture, {"number"});
  bind(m, "note_launches", &emu::note_launches, {"multiprocessors"});
  m.def("noted_launches", [] {
    const auto extents = [](emu::Index index) { return py::make_tuple(index.x, index.y, index.z); };
    py::list found;
    for (const emu::Noted& launch : emu::noted_launches()) {
      py::list parameters;
      for (const emu::Parameter& p : launch.parameters)
        parameters.append(py::make_tuple(p.alignment, py::bytes(p.bytes)));
      found.append(py::make_tuple(launch.kernel, extents(launch.grid), extents(launch.block),
                                  launch.shared_bytes, parameters));
    }
    return found;
  });
}

}  // namespace convnet::bindings
