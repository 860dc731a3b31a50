// Exchange between the 32 lanes of a warp: every lane brings a value, the last to come computes for all.
#pragma once
#include <cmath>
#include <source_location>
#include <type_traits>

#include "cluster.hpp"
#include "glass.hpp"

namespace convnet {
namespace emu {

// combine(in, out) gets the values of the 32 lanes and writes what each of them receives.
template <class T, class Combine>
T meet(T value, const char* operation, Site site, Combine combine) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kLaneBytes);
  Warp& warp = *here->warp;
  const int lane = here->lane;
  here->block->check_meeting(warp, operation, site);
  T* const in = reinterpret_cast<T*>(warp.in);
  T* const out = reinterpret_cast<T*>(warp.out);
  in[lane] = value;
  if (warp.arrived == 0) warp.site = site;
  if (++warp.arrived == kWarpLanes) {
    combine(const_cast<const T*>(in), out);
    warp.arrived = 0;
    ++warp.meetings;
    if (watching) watch_meeting(warp);
  } else {
    here->block->cluster.wait_while(warp.meetings, warp.meetings, operation, site);
  }
  return out[lane];  // no lane can change `out` before this lane has come to the next meeting
}

// In the order of the GPU's butterfly, so that the bits are the same.
template <class T, class Combine>
T butterfly(T value, const char* operation, Site site, Combine combine) {
  return meet(value, operation, site, [&](const T* in, T* out) {
    T current[kWarpLanes], next[kWarpLanes];
    for (int lane = 0; lane < kWarpLanes; ++lane) current[lane] = in[lane];
    for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) {
      for (int lane = 0; lane < kWarpLanes; ++lane)
        next[lane] = combine(current[lane], current[lane ^ mask]);
      for (int lane = 0; lane < kWarpLanes; ++lane) current[lane] = next[lane];
    }
    for (int lane = 0; lane < kWarpLanes; ++lane) out[lane] = current[lane];
  });
}

}  // namespace emu

template <class T>
T warp_shuffle_xor(T value, int mask, std::source_location site = std::source_location::current()) {
  struct Request {
    T value;
    int mask;
  };
  const auto exchange = [](const Request* in, Request* out) {
    for (int lane = 0; lane < emu::kWarpLanes; ++lane) out[lane] = in[lane ^ (in[lane].mask & 31)];
  };
  return emu::meet(Request{value, mask}, "warp_shuffle_xor", site, exchange).value;
}

inline int warp_uniform(int value, std::source_location site = std::source_location::current()) {
  return emu::meet(value, "warp_uniform", site, [](const int* in, int* out) {
    for (int lane = 0; lane < emu::kWarpLanes; ++lane) out[lane] = in[0];
  });
}

template <class T>
T warp_sum(T value, std::source_location site = std::source_location::current()) {
  return emu::butterfly(value, "warp_sum", site, [](T a, T b) { return a + b; });
}

inline float warp_max(float value, std::source_location site = std::source_location::current()) {
  return emu::butterfly(value, "warp_max", site, [](float a, float b) { return std::fmax(a, b); });
}

inline int warp_max(int value, std::source_location site = std::source_location::current()) {
  return emu::butterfly(value, "warp_max", site, [](int a, int b) { return a > b ? a : b; });
}

}  // namespace convnet
