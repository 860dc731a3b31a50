// One function per file of this folder: each adds its part to the module.
#pragma once
#include <pybind11/pybind11.h>

namespace convnet::bindings {

void register_convolution(pybind11::module_& m);
void register_linear(pybind11::module_& m);
void register_variants(pybind11::module_& m);
void register_normalise_pool(pybind11::module_& m);
void register_elementwise(pybind11::module_& m);
void register_training(pybind11::module_& m);
void register_info(pybind11::module_& m);

#ifdef CONVNET_EMU
void register_emulator(pybind11::module_& m);
#else
void register_graph(pybind11::module_& m);
#endif

}  // namespace convnet::bindings
