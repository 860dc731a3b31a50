// One function per file of ops: each adds its part to a module. register_all adds all of them.
#pragma once
#include <pybind11/pybind11.h>

namespace convnet::bindings {

void register_convolution(pybind11::module_& m);
void register_local(pybind11::module_& m);
void register_linear(pybind11::module_& m);
void register_variants(pybind11::module_& m);
void register_normalise_pool(pybind11::module_& m);
void register_elementwise(pybind11::module_& m);
void register_training(pybind11::module_& m);

// Of the modules that launch kernels.
void register_checking(pybind11::module_& m);

void register_all(pybind11::module_& m);

}  // namespace convnet::bindings
