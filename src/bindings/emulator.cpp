// The module convnet.kernels._emu: the ops, and the emulator's own switches: the order in which threads run, how
// many blocks run at a time, and the machine that is played.
#include "../kernels/emu/launch.hpp"
#include "bind.hpp"
#include "register.hpp"

PYBIND11_MODULE(_emu, m) {
  using namespace convnet::bindings;
  register_all(m);
  register_checking(m);
  bind(m, "seed_order", &convnet::emu::seed_order, {"seed"});
  bind(m, "set_threads", &convnet::emu::set_threads, {"count"});
  bind(m, "set_architecture", &convnet::emu::set_architecture, {"number"});
  bind(m, "note_launches", &convnet::emu::note_launches, {"multiprocessors"});
  m.def("noted_launches", [] {
    const auto extents = [](convnet::emu::Index index) {
      return py::make_tuple(index.x, index.y, index.z);
    };
    py::list found;
    for (const convnet::emu::Noted& launch : convnet::emu::noted_launches()) {
      py::list parameters;
      for (const convnet::emu::Parameter& p : launch.parameters)
        parameters.append(py::make_tuple(p.alignment, py::bytes(p.bytes)));
      found.append(py::make_tuple(launch.kernel, extents(launch.grid), extents(launch.block),
                                  launch.shared_bytes, parameters, launch.cluster));
    }
    return found;
  });
}
