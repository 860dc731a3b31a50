// The module convnet._emu: the ops, and the emulator's own switches: the order in which threads run, how
// many blocks run at a time, and the machine that is played.
#include "../kernels/emu/launch.hpp"
#include "bind.hpp"
#include "register.hpp"

PYBIND11_MODULE(_emu, m) {
  using namespace convnet::bindings;
  register_both(m);
  bind(m, "seed_order", &convnet::emu::seed_order, {"seed"});
  bind(m, "set_threads", &convnet::emu::set_threads, {"count"});
  bind(m, "set_architecture", &convnet::emu::set_architecture, {"number"});
}
