// The module convnet.kernels._cpu: the ops, where BLAS is, and what tests choose: instructions, cuts, scratch memory.
#include "../kernels/cpu/level.hpp"
#include "../kernels/cpu/work.hpp"
#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {
namespace {

void use_blas(uint64_t sgemm, uint64_t get_threads, uint64_t set_threads, bool wide) {
  cpu::use_blas(sgemm, get_threads, set_threads, wide);
}

}  // namespace
}  // namespace convnet::bindings

PYBIND11_MODULE(_cpu, m) {
  using namespace convnet::bindings;
  largest_alignment() = alignof(float);  // of what lies between other values in an array of NumPy
  register_all(m);
  bind(m, "use_blas", &use_blas, {"sgemm", "get_threads", "set_threads", "wide"});
  m.def("threads", &convnet::cpu::threads);
  m.def("scratch_bytes", &convnet::cpu::scratch_bytes);
  bind(m, "set_level", &convnet::cpu::set_level, {"number"});
  bind(m, "set_tile_bytes", &convnet::cpu::set_tile_bytes, {"bytes"});
  bind(m, "poison_scratch", &convnet::cpu::poison_scratch, {"on"});
}
