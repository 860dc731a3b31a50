// The extension modules convnet.kernels._emu and convnet.kernels._gpu; CONVNET_MODULE is the name of the one being built.
#include "register.hpp"

PYBIND11_MODULE(CONVNET_MODULE, m) {
  using namespace convnet::bindings;
  register_convolution(m);
  register_linear(m);
  register_variants(m);
  register_normalise_pool(m);
  register_elementwise(m);
  register_training(m);
  register_info(m);
#ifdef CONVNET_EMU
  register_emulator(m);
#else
  register_graph(m);
#endif
}
