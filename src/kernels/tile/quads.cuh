// Work split over quads: four neighbouring values, as a rule four image lanes, moved by one access
// of 16 bytes (float) or 8 (bf16). Kernels take the element type of activations as a template
// parameter T, compute in float32, and round once, as they store.
//
//   map        one thread per quad of `count` contiguous values, any layout
//   LaneGrid   one thread per 1 or 4 lanes of one pixel of one plane; a plane is whatever the op
//              walks apart from pixels and lanes (image blocks x channels, ...). Pixels and lanes
//              are contiguous, so that neighbouring threads touch neighbouring memory. A thread
//              block never spans two planes: the divisions that find a thread's place are then 32
//              bits wide, and 64 bits are left to the addresses.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../arch/arch.cuh"
#include "../check.hpp"

namespace convnet {

constexpr int kQuadThreads = 256;
constexpr int64_t kMaxGrid = 0x7fffffff;  // thread blocks along x

// Throws unless a mask or argmax can be accessed four bytes at a time; null can. The bindings check
// that floats lie at multiples of 16 bytes.
inline void require_aligned(const char* op, const uint8_t* bytes) {
  require(reinterpret_cast<std::uintptr_t>(bytes) % 4 == 0, op,
          ": arrays of bytes must start at a multiple of 4, got address ",
          reinterpret_cast<std::uintptr_t>(bytes),
          "; pass whole arrays, or views that start at a multiple of 4");
}

// Thread blocks of a map over count values.
inline Dim3 map_grid(const char* op, int64_t count) {
  require(count >= 0 && count <= kMaxGrid * 4 * kQuadThreads, op, ": count must be 0 to ",
          kMaxGrid * 4 * kQuadThreads, ", got ", count);
  const int64_t blocks = (count + 4 * kQuadThreads - 1) / (4 * kQuadThreads);
  return Dim3(static_cast<unsigned>(blocks));
}

// First value of this thread's quad.
__device__ __forceinline__ int64_t map_index() {
  return 4 * (int64_t{blockIdx.x} * kQuadThreads + threadIdx.x);
}

// A quad as it lies in memory.
template <class T>
using Packed = decltype(load_packed(static_cast<const T*>(nullptr)));

// One value, as load4 and store4 do with four.
__device__ __forceinline__ float load1(const float* address) { return *address; }
__device__ __forceinline__ float load1(const bf16* address) { return to_float(*address); }
__device__ __forceinline__ void store1(float* address, float value) { *address = value; }
__device__ __forceinline__ void store1(bf16* address, float value) { *address = to_bf16(value); }

// Calls f with an element of the type that activations have: with_element(precision,
// [&](auto element) { using T = decltype(element); ... }).
template <class Function>
void with_element(Precision precision, Function f) {
  if (precision == Precision::bf16)
    f(bf16{});
  else
    f(float{});
}

// y[i] = f(a[i]). The thread whose quad is cut short takes its values one by one.
template <class T, class Function>
__device__ __forceinline__ void map(int64_t count, const T* a, T* y, Function f) {
  int64_t i = map_index();
  if (i + 4 <= count) {
    const float4 u = load4(a + i);
    store4(y + i, float4{f(u.x), f(u.y), f(u.z), f(u.w)});
  } else {
    for (; i < count; ++i) store1(y + i, f(load1(a + i)));
  }
}

// y[i] = f(a[i], b[i])
template <class T, class Function>
__device__ __forceinline__ void map(int64_t count, const T* a, const T* b, T* y, Function f) {
  int64_t i = map_index();
  if (i + 4 <= count) {
    const float4 u = load4(a + i);
    const float4 v = load4(b + i);
    store4(y + i, float4{f(u.x, v.x), f(u.y, v.y), f(u.z, v.z), f(u.w, v.w)});
  } else {
    for (; i < count; ++i) store1(y + i, f(load1(a + i), load1(b + i)));
  }
}

// y[i] = f(a[i], b[i], c[i])
template <class T, class Function>
__device__ __forceinline__ void map(
    int64_t count, const T* a, const T* b, const T* c, T* y, Function f) {
  int64_t i = map_index();
  if (i + 4 <= count) {
    const float4 u = load4(a + i);
    const float4 v = load4(b + i);
    const float4 w = load4(c + i);
    store4(y + i, float4{f(u.x, v.x, w.x), f(u.y, v.y, w.y), f(u.z, v.z, w.z), f(u.w, v.w, w.w)});
  } else {
    for (; i < count; ++i) store1(y + i, f(load1(a + i), load1(b + i), load1(c + i)));
  }
}

struct LaneGrid {
  int pixels;   // of a plane
  int units;    // threads per pixel
  int width;    // lanes per thread
  int threads;  // per thread block
  int blocks;   // thread blocks per plane
  int64_t planes;

  Dim3 grid() const { return Dim3(static_cast<unsigned>(planes * blocks)); }
  Dim3 block() const { return Dim3(static_cast<unsigned>(threads)); }
};

struct LanePlace {
  int64_t plane;
  int pixel, lane;
  bool inside;  // false in threads left over at the end of a plane
};

// N / lanes; throws when N is not whole blocks.
inline int64_t image_blocks(const char* op, int64_t N, int64_t lanes) {
  require(lanes >= 8 && lanes % 8 == 0 && N >= lanes && N % lanes == 0, op,
          ": lanes must be a multiple of 8 and N a multiple of lanes, got N=", N, " lanes=", lanes,
          "; pad the batch with images");
  return N / lanes;
}

// Plans a launch over lanes that image_blocks has checked; throws when the sizes are not positive or
// do not fit a launch.
inline LaneGrid lane_grid(
    const char* op, int64_t planes, int64_t pixels, int64_t lanes, int width = 4) {
  require(planes >= 1 && pixels >= 1, op, ": sizes must be positive, got ", planes, " planes of ",
          pixels, " pixels");
  const int64_t work = pixels * (lanes / width);
  require(work <= kMaxGrid - kQuadThreads, op, ": one plane of ", pixels, " pixels x ", lanes,
          " lanes is too large for 32-bit indices");
  const int threads = static_cast<int>(std::min<int64_t>(kQuadThreads, (work + 31) / 32 * 32));
  const int64_t blocks = (work + threads - 1) / threads;
  require(planes * blocks <= kMaxGrid, op, ": ", planes, " planes of ", pixels, " pixels x ", lanes,
          " lanes are too many for one launch; use a smaller batch");
  return LaneGrid{static_cast<int>(pixels),
                  static_cast<int>(lanes / width),
                  width,
                  threads,
                  static_cast<int>(blocks),
                  planes};
}

__device__ __forceinline__ LanePlace lane_place(const LaneGrid& grid) {
  const int plane = static_cast<int>(blockIdx.x) / grid.blocks;
  const int unit = (static_cast<int>(blockIdx.x) - plane * grid.blocks) * grid.threads +
                   static_cast<int>(threadIdx.x);
  const int pixel = unit / grid.units;
  return LanePlace{plane, pixel, (unit - pixel * grid.units) * grid.width, pixel < grid.pixels};
}

}  // namespace convnet
