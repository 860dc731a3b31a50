# Decides whether _gpu is built and for which GPUs. Sets CONVNET_BUILD_GPU, and with it CMAKE_CUDA_COMPILER and
# CMAKE_CUDA_ARCHITECTURES. Also runs as a script: cmake -DCONVNET_CUDA=AUTO -P cmake/choose_cuda.cmake
# A wanted build that cannot be is an error: no silent CPU-only result.
if(NOT CONVNET_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "convnet: CONVNET_CUDA must be AUTO, ON or OFF, got \"${CONVNET_CUDA}\"")
endif()

# The GPUs of this machine that the kernels can run on, as CMake names architectures.
set(gpus "")
find_program(NVIDIA_SMI nvidia-smi)
if(NVIDIA_SMI)
  execute_process(COMMAND "${NVIDIA_SMI}" --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE capabilities ERROR_QUIET)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${capabilities}")
  foreach(capability IN LISTS capabilities)
    if(capability VERSION_GREATER_EQUAL 8.0)
      string(REPLACE "." "" architecture ${capability})
      # Plain 90 has neither wgmma nor register reallocation.
      string(REGEX REPLACE "^90$" "90a" architecture ${architecture})
      list(APPEND gpus ${architecture}-real)
    endif()
  endforeach()
  list(REMOVE_DUPLICATES gpus)
endif()

# The places where the build backend looks too, and no others: hence NO_CMAKE_SYSTEM_PATH.
find_program(CMAKE_CUDA_COMPILER NAMES "$ENV{CUDACXX}" nvcc PATHS /usr/local/cuda/bin NO_CMAKE_SYSTEM_PATH)

set(CONVNET_BUILD_GPU OFF)
if(CONVNET_CUDA STREQUAL "OFF")
  message(STATUS "convnet: CPU-only, as asked for by CONVNET_CUDA=OFF")
elseif(CONVNET_CUDA STREQUAL "AUTO" AND NOT gpus AND NOT CMAKE_CUDA_COMPILER)
  message(STATUS "convnet: CPU-only, because there is neither an NVIDIA GPU nor nvcc here; for the CUDA kernels all the "
                 "same: pip install . -C cmake.define.CONVNET_CUDA=ON")
elseif(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR
    "convnet: the CUDA kernels are wanted (CONVNET_CUDA=${CONVNET_CUDA}, GPUs here: ${gpus}) but there is no nvcc. "
    "pip with build isolation brings one along; or set CUDACXX to one; or build without: CONVNET_CUDA=OFF "
    "(pip: -C cmake.define.CONVNET_CUDA=OFF)")
else()
  set(CONVNET_BUILD_GPU ON)
  if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT "$ENV{CUDAARCHS}" STREQUAL "")
    set(CMAKE_CUDA_ARCHITECTURES $ENV{CUDAARCHS})
  elseif(NOT CMAKE_CUDA_ARCHITECTURES AND gpus)
    set(CMAKE_CUDA_ARCHITECTURES ${gpus})
  elseif(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real)
  endif()
  string(REPLACE ";" "," architectures "${CMAKE_CUDA_ARCHITECTURES}")
  string(REPLACE "-real" "" architectures "${architectures}")
  message(STATUS "convnet: CUDA kernels for ${architectures}")
endif()
