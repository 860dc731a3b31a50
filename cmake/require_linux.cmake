# One sentence on other systems. Also runs as a script: cmake -DCONVNET_SYSTEM=Darwin -P cmake/require_linux.cmake
if(NOT CONVNET_SYSTEM)
  cmake_host_system_information(RESULT CONVNET_SYSTEM QUERY OS_NAME)
endif()
if(NOT CONVNET_SYSTEM STREQUAL "Linux")
  message(FATAL_ERROR
    "convnet is built and runs on Linux alone, and this is ${CONVNET_SYSTEM}: use a Linux machine, a virtual one or a "
    "container (on Windows also WSL 2)")
endif()
