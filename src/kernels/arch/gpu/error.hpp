// Failures of the CUDA runtime as exceptions.
#pragma once
#include <cuda_runtime_api.h>

#include <stdexcept>

#include "../../check.hpp"

namespace convnet {

inline void cuda_check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // takes back what the runtime remembers: the next launch would report it again
  throw std::runtime_error(
      message(what, ": ", cudaGetErrorString(status), " (CUDA error ", int(status), ")"));
}

}  // namespace convnet
