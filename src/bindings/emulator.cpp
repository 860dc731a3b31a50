// The emulator's own switches: the order in which threads run, and how many blocks run at a time.
#include "../kernels/emu/launch.hpp"
#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {

void register_emulator(py::module_& m) {
  bind(m, "seed_order", &emu::seed_order, {"seed"});
  bind(m, "set_threads", &emu::set_threads, {"count"});
  bind(m, "set_architecture", &emu::set_architecture, {"number"});
}

}  // namespace convnet::bindings
