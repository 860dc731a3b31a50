// Starts kernels in the emulator, and the two things that can be chosen about it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../shapes.hpp"
#include "block.hpp"

namespace convnet {

struct Dim3 {
  unsigned x, y, z;
  constexpr Dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct Grid {
  Dim3 blocks;
  unsigned cluster;
  constexpr Grid(Dim3 blocks, unsigned cluster = 1) : blocks(blocks), cluster(cluster) {}
};

namespace emu {

// Chooses the order of clusters, and of threads within a cluster. A correct kernel gives the same bits for every seed.
void seed_order(uint64_t seed);

// How many OS threads share the blocks of a launch; 0 (the default) means one per core, at most 16.
void set_threads(int count);
int threads();

// The machine that the emulator plays: 80 or 90 (the default). Kernels are chosen by it.
void set_architecture(int number);

// One parameter of a kernel as the host passes it.
struct Parameter {
  std::size_t alignment;
  std::string bytes;
};

// A launch that was noted and not run.
struct Noted {
  std::string kernel;  // its signature, template arguments included, as the compiler prints it
  Index grid, block;
  unsigned cluster;  // blocks
  std::size_t shared_bytes;
  std::vector<Parameter> parameters;
};

// From now on launches are noted, as on a machine of so many multiprocessors, until noted_launches() gives them back.
// Of a noted kernel the first cluster runs up to begin_kernel(), in front of any access to global memory: arguments may
// be addresses of nothing.
void note_launches(int multiprocessors);
std::vector<Noted> noted_launches();
bool noting();
void note(Launch& launch, std::vector<Parameter> parameters);

template <class T>
Parameter parameter(const T& value) {
  return {alignof(T), std::string(reinterpret_cast<const char*>(&value), sizeof(T))};
}

// A stream that knows which launcher it was handed over by, for error messages.
struct LaunchSite {
  Site site;
  LaunchSite(Stream, Site site = Site::current()) : site(site) {}
};

}  // namespace emu

int architecture();
// Few, so that the blocks of a persistent kernel take several tiles each, unless launches are noted for a real machine.
int multiprocessors();

// Runs the kernel and returns when it is done. Throws std::runtime_error for whatever went wrong in it.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...),
            Grid grid,
            Dim3 block,
            std::size_t shared_bytes,
            emu::LaunchSite stream,
            Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments),
                "launch: one argument per parameter of the kernel");
  static_assert((std::is_trivially_copyable_v<Parameters> && ...),
                "launch: kernel parameters are copied as bytes");
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  };
  const Call call{kernel, {static_cast<Parameters>(arguments)...}};
  emu::Launch launch{
      .grid = {grid.blocks.x, grid.blocks.y, grid.blocks.z},
      .block = {block.x, block.y, block.z},
      .cluster = grid.cluster,
      .shared_bytes = shared_bytes,
      .site = stream.site,
      .body =
          [](const void* context) {
            const Call& call = *static_cast<const Call*>(context);
            std::apply(call.kernel, call.parameters);
          },
      .context = &call,
  };
  if (emu::noting())
    emu::note(launch, std::apply(
                          [](const auto&... p) {
                            return std::vector<emu::Parameter>{emu::parameter(p)...};
                          },
                          call.parameters));
  else
    emu::run_launch(launch);
}

}  // namespace convnet
