// How a module was built, for convnet-info and bug reports.
#pragma once

namespace convnet::bindings {

struct BuildInfo {
  const char *compiler, *cuda, *architectures, *version;
};

BuildInfo build_info();

}  // namespace convnet::bindings
