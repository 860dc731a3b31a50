#include "direct.hpp"

#include "level.hpp"
#include "unfold.hpp"

namespace convnet::cpu {

#if defined(__x86_64__)
namespace avx512 {
#define CONVNET_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define CONVNET_VECTOR 64
#include "direct_rows.hpp"
#undef CONVNET_TARGET
#undef CONVNET_VECTOR
}  // namespace avx512

namespace avx2 {
#define CONVNET_TARGET __attribute__((target("avx2,fma")))
#define CONVNET_VECTOR 32
#include "direct_rows.hpp"
#undef CONVNET_TARGET
#undef CONVNET_VECTOR
}  // namespace avx2

bool takes_direct(const ConvShape& shape) {
  return level() != Level::base && __builtin_cpu_supports("fma") && shape.lanes >= avx512::kVector;
}

// Sums over lanes: all vectors must be whole. With a large stride x is copied more often than used.
bool takes_direct_gradient(const ConvShape& shape) {
  return takes_direct(shape) && shape.lanes % avx2::kVector == 0 && shape.stride <= 2;
}

namespace {

bool widest(const ConvShape& shape) {
  return level() == Level::avx512 && shape.lanes % avx512::kVector == 0;
}

// Filters of tiles of two vectors: as many sums as there are registers for.
constexpr int kTiles[] = {12, 6, 4, 2, 1}, kMostAvx2 = 6;

template <int kF>
void any_row(const Direct& d,
             const float* x,
             const float* packed,
             int64_t k,
             float* y,
             const float* mask,
             int64_t p) {
  if constexpr (kF <= kMostAvx2)
    if (level() == Level::avx2) return avx2::row<kF>(d, x, packed, k, y, mask, p);
  avx512::row<kF>(d, x, packed, k, y, mask, p);
}

}  // namespace

int tile_filters(int64_t k, int64_t K) {
  for (const int filters : kTiles)
    if (k + filters <= K && (filters <= kMostAvx2 || level() == Level::avx512)) return filters;
  return 1;
}

void direct_row(const Direct& d,
                const float* x,
                const float* packed,
                int64_t k,
                float* y,
                const float* mask,
                int64_t p) {
  const int64_t plane = d.shape.P * d.shape.Q * d.shape.lanes;
  packed += k * d.C * d.shape.R * d.shape.S, y += k * plane;
  if (mask) mask += k * plane;
  switch (tile_filters(k, d.K)) {
    case 12:
      return any_row<12>(d, x, packed, k, y, mask, p);
    case 6:
      return any_row<6>(d, x, packed, k, y, mask, p);
    case 4:
      return any_row<4>(d, x, packed, k, y, mask, p);
    case 2:
      return any_row<2>(d, x, packed, k, y, mask, p);
    default:
      return any_row<1>(d, x, packed, k, y, mask, p);
  }
}

int gradient_filters(int64_t k, int64_t K) {
  for (int filters = level() == Level::avx512 ? 8 : 4; filters > 1; filters /= 2)
    if (k + filters <= K) return filters;
  return 1;
}

int64_t gradient_sums(const ConvShape& shape, int64_t channels) {
  return channels * shape.R * shape.S * 8 * avx512::kVector;
}

void direct_gradient(const Gradient& d,
                     const float* x,
                     const float* dy,
                     int64_t k,
                     int64_t c0,
                     int64_t c1,
                     float* sums,
                     float* pixels,
                     float* dweight) {
  const int filters = gradient_filters(k, d.K);
  if (widest(d.shape)) {
    switch (filters) {
      case 8:
        return avx512::gradient_tile<8>(d, x, dy, k, c0, c1, sums, pixels, dweight);
      case 4:
        return avx512::gradient_tile<4>(d, x, dy, k, c0, c1, sums, pixels, dweight);
      case 2:
        return avx512::gradient_tile<2>(d, x, dy, k, c0, c1, sums, pixels, dweight);
      default:
        return avx512::gradient_tile<1>(d, x, dy, k, c0, c1, sums, pixels, dweight);
    }
  }
  switch (filters) {
    case 4:
      return avx2::gradient_tile<4>(d, x, dy, k, c0, c1, sums, pixels, dweight);
    case 2:
      return avx2::gradient_tile<2>(d, x, dy, k, c0, c1, sums, pixels, dweight);
    default:
      return avx2::gradient_tile<1>(d, x, dy, k, c0, c1, sums, pixels, dweight);
  }
}
#else
bool takes_direct_gradient(const ConvShape&) { return false; }
int gradient_filters(int64_t, int64_t) { return 1; }
int64_t gradient_sums(const ConvShape&, int64_t) { return 0; }
void direct_gradient(
    const Gradient&, const float*, const float*, int64_t, int64_t, int64_t, float*, float*) {}
bool takes_direct(const ConvShape&) { return false; }
int tile_filters(int64_t, int64_t) { return 1; }
void direct_row(const Direct&, const float*, const float*, int64_t, float*, const float*, int64_t) {
}
#endif

}  // namespace convnet::cpu
