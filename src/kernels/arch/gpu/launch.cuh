// Starts kernels on a CUDA device.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>

#include "../../shapes.hpp"
#include "error.hpp"

namespace convnet {

using Dim3 = dim3;

// Of the current device, as two decimal digits: 80, 90, ...
inline int architecture() {
  int device = 0, major = 0, minor = 0;
  cuda_check(cudaGetDevice(&device), "asking for the current device");
  cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
             "asking for the architecture");
  cuda_check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
             "asking for the architecture");
  return 10 * major + minor;
}

inline int multiprocessors() {
  int device = 0, count = 0;
  cuda_check(cudaGetDevice(&device), "asking for the current device");
  cuda_check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
             "asking for the number of multiprocessors");
  return count;
}

// Launches on `stream` of the current device and returns at once. More than 48 KiB of dynamic shared memory is opted into.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...),
            Dim3 grid,
            Dim3 block,
            std::size_t shared_bytes,
            Stream stream,
            Arguments&&... arguments) {
  if (shared_bytes > 48 * 1024)
    cuda_check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               "opting into shared memory");
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(
      static_cast<Parameters>(arguments)...);
  cuda_check(cudaGetLastError(), "kernel launch");
}

}  // namespace convnet
