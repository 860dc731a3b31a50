// Starts kernels on a CUDA device.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>

#include "../../check.hpp"
#include "../../shapes.hpp"
#include "error.hpp"
#include "launches.hpp"

namespace convnet {

using Dim3 = dim3;

struct Grid {
  Dim3 blocks;
  unsigned cluster;
  Grid(Dim3 blocks, unsigned cluster = 1) : blocks(blocks), cluster(cluster) {}
};

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

// From sm_90 on a kernel may start while the one before it on the stream ends, so that the blocks of the one fill the
// processors that those of the other leave (programmatic dependent launch). The first instruction waits until the kernels
// before are done and what they wrote is visible; the second says that the next kernel may start as soon as all blocks of
// this one have come so far. In this order two kernels are under way at a time and no more: the other way round a third
// could start, and would find memory that the first still reads or writes.
// Either way the compiler takes memory for changed from here on: it would otherwise find that a kernel does not write what
// it reads, and take loads that may return what was there before (LDG.E.CONSTANT).
__device__ __forceinline__ void begin_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n\tgriddepcontrol.launch_dependents;" ::: "memory");
#else
  asm volatile("" ::: "memory");
#endif
}

// Launches on `stream` of the current device and returns at once. More than 48 KiB of dynamic shared memory is opted into.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...),
            Grid grid,
            Dim3 block,
            std::size_t shared_bytes,
            Stream stream,
            Arguments&&... arguments) {
  if (shared_bytes > 48 * 1024)
    cuda_check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               "opting into shared memory");
  if (only_checking()) return end_check();
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (programmatic_launches && architecture() >= 90) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (grid.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {grid.cluster, 1, 1};
  }
  cudaLaunchConfig_t configuration{};
  configuration.gridDim = grid.blocks;
  configuration.blockDim = block;
  configuration.dynamicSmemBytes = shared_bytes;
  configuration.stream = stream;
  configuration.attrs = attributes;
  configuration.numAttrs = count;
  cuda_check(cudaLaunchKernelEx(&configuration, kernel, static_cast<Parameters>(arguments)...),
             "kernel launch");
}

}  // namespace convnet
