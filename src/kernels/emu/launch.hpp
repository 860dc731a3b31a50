// Starts kernels in the emulator, and the two things that can be chosen about it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "../shapes.hpp"
#include "block.hpp"

namespace convnet {

struct Dim3 {
  unsigned x, y, z;
  constexpr Dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emu {

// Chooses the order of blocks, and of threads within a block. A correct kernel gives the same bits for every seed.
void seed_order(uint64_t seed);

// How many OS threads share the blocks of a launch; 0 (the default) means one per core, at most 16.
void set_threads(int count);
int threads();

// The machine that the emulator plays: 80 or 90 (the default). Kernels are chosen by it.
void set_architecture(int number);

// A stream that knows which launcher it was handed over by, for error messages.
struct LaunchSite {
  Site site;
  LaunchSite(Stream, Site site = Site::current()) : site(site) {}
};

}  // namespace emu

int architecture();
// Few, so that the blocks of a persistent kernel take several tiles each.
inline int multiprocessors() { return 3; }

// Runs the kernel and returns when it is done. Throws std::runtime_error for whatever went wrong in it.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...),
            Dim3 grid,
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
      .grid = {grid.x, grid.y, grid.z},
      .block = {block.x, block.y, block.z},
      .shared_bytes = shared_bytes,
      .site = stream.site,
      .body =
          [](const void* context) {
            const Call& call = *static_cast<const Call*>(context);
            std::apply(call.kernel, call.parameters);
          },
      .context = &call,
  };
  emu::run_launch(launch);
}

}  // namespace convnet
