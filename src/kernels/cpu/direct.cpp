#include "direct.hpp"

#include <type_traits>

#include "level.hpp"
#include "unfold.hpp"

namespace convnet::cpu {

#if defined(__x86_64__)
namespace avx512 {
#define CONVNET_TARGET CONVNET_AVX512
#define CONVNET_VECTOR 64
#include "direct_rows.hpp"
#undef CONVNET_TARGET
#undef CONVNET_VECTOR
}  // namespace avx512

namespace avx2 {
#define CONVNET_TARGET CONVNET_AVX2
#define CONVNET_VECTOR 32
#include "direct_rows.hpp"
#undef CONVNET_TARGET
#undef CONVNET_VECTOR
}  // namespace avx2

bool fuses() { return level() != Level::base && __builtin_cpu_supports("fma"); }

bool takes_direct(const ConvShape& shape) { return fuses() && shape.lanes >= avx512::kVector; }

bool takes_flat(const ConvShape& shape) { return fuses() && shape.lanes < avx512::kVector; }

bool takes_direct_features(const LinearShape&) { return fuses(); }

bool takes_direct_inputs(const LinearShape& shape) {
  return takes_direct_features(shape) &&
         shape.lanes % (level() == Level::avx512 ? avx512::kVector : avx2::kVector) == 0;
}

void feature_sums(
    const LinearShape& s, const float* x, const float* weight, int64_t n, float* sums) {
  const bool widest = level() == Level::avx512;
  // many lanes share what is read of the weight; the last few features are no whole vectors
  const int64_t step = widest ? 4 * avx512::kVector : 2 * avx2::kVector,
                whole = s.lanes > 16 ? n / step * step : 0;
  if (whole)
    (widest ? avx512::features<6, 4> : avx2::features<6, 2>)(x, weight, s.C, s.K, s.lanes, whole,
                                                             sums, n);
  if (whole < n)
    (widest ? avx512::few_sums : avx2::few_sums)(x, weight + whole, s.C, s.K, s.lanes, n - whole,
                                                 sums + whole, n);
}

void input_gradients(
    const LinearShape& s, const float* dy, const float* weight, int64_t C, float* dx) {
  if (level() == Level::avx2)
    avx2::inputs<2>(dy, weight, C, s.K, s.lanes, dx);
  else if (s.lanes % (4 * avx512::kVector))
    avx512::inputs<2>(dy, weight, C, s.K, s.lanes, dx);
  else
    avx512::inputs<4>(dy, weight, C, s.K, s.lanes, dx);
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

void flat_sums(int filters,
               const float* x,
               const int64_t* offset,
               int64_t taps,
               int64_t C,
               int64_t step,
               const float* weight,
               const float* bias,
               float* y,
               int64_t n) {
  const auto run = [&](auto count) {
    constexpr int kF = count();
    if constexpr (kF <= kMostAvx2)
      if (level() == Level::avx2)
        return avx2::flat_run<kF>(x, offset, taps, C, step, weight, bias, y, n);
    avx512::flat_run<kF>(x, offset, taps, C, step, weight, bias, y, n);
  };
  with_count(filters, run);
}

void convolve_flat(const ConvShape& s,
                   const float* x,
                   const float* weight,
                   const float* bias,
                   bool relu,
                   float* y) {
  const int64_t g = s.groups, C = s.C / g, K = s.K / g, L = s.lanes, taps = C * s.R * s.S,
                row = s.Q * L;
  // planes by the remainders of row and column, each with the outputs' rows and columns and those that taps add
  const int64_t down = s.stride < s.R ? s.stride : s.R, across = s.stride < s.S ? s.stride : s.S;
  const int64_t width = (s.Q + (s.S - 1) / s.stride) * L, height = s.P + (s.R - 1) / s.stride,
                plane = height * width;
  const int64_t step = down * across * plane, n = ((s.P - 1) * width + row + 15) / 16 * 16;
  std::vector<int64_t> offset;
  for (int64_t r = 0; r < s.R; ++r)
    for (int64_t t = 0; t < s.S; ++t)
      offset.push_back((r % s.stride * across + t % s.stride) * plane + r / s.stride * width +
                       t / s.stride * L);
  const std::vector<int64_t> tiles = filter_tiles(K);
  const int64_t many = static_cast<int64_t>(tiles.size());

  for (int64_t block = 0; block < s.N / L; ++block) {
    const float* const images = x + block * s.C * s.H * s.W * L;
    float* const out = y + block * s.K * s.P * row;
    float* const pixels =
        scratch(Scratch::shared, s.C * step + 16);  // the last vector of all reads behind its end
    in_pieces(s.C, kPiece / 4 / step + 1, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        const float* const image = images + c * s.H * s.W * L;
        for (int64_t a = 0; a < down; ++a)
          for (int64_t b = 0; b < across; ++b)
            for (int64_t i = 0; i < height; ++i) {
              float* to = pixels + c * step + (a * across + b) * plane + i * width;
              const int64_t h = i * s.stride + a - s.pad_top;
              const bool exists = h >= 0 && h < s.H;
              for (int64_t w = b - s.pad_left;
                   to < pixels + c * step + (a * across + b) * plane + (i + 1) * width;
                   w += s.stride, to += L) {
                const bool inside = exists && w >= 0 && w < s.W;
                for (int64_t l = 0; l < L; ++l)
                  to[l] = inside ? image[(h * s.W + w) * L + l] : 0.0f;
              }
            }
      }
    });
    in_parallel(g * many, [&](int64_t index) {
      const int64_t group = index / many, k = tiles[static_cast<std::size_t>(index % many)];
      const int filters = tile_filters(k, K);
      float* const packed = scratch(Scratch::packed, taps * filters);
      const float* const own = weight + group * taps * K + k;
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t f = 0; f < filters; ++f) packed[tap * filters + f] = own[tap * K + f];
      float* const sums = scratch(Scratch::sums, filters * n);
      flat_sums(filters, pixels + group * C * step, offset.data(), s.R * s.S, C, step, packed,
                bias ? bias + group * K + k : nullptr, sums, n);
      vectorised([&]() CONVNET_INLINE {
        for (int64_t f = 0; f < filters; ++f)
          for (int64_t p = 0; p < s.P; ++p) {
            const float* const sum = sums + f * n + p * width;
            float* const to = out + ((group * K + k + f) * s.P + p) * row;
            for (int64_t i = 0; i < row; ++i) to[i] = relu && sum[i] <= 0.0f ? 0.0f : sum[i];
          }
      });
    });
  }
}

std::vector<int64_t> filter_tiles(int64_t K) {
  std::vector<int64_t> tiles;
  for (int64_t k = 0; k < K; k += tile_filters(k, K)) tiles.push_back(k);
  return tiles;
}

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

int gradient_filters(const ConvShape& shape, int64_t k, int64_t K) {
  for (int filters = widest(shape) ? 8 : 4; filters > 1; filters /= 2)
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
  const int filters = gradient_filters(d.shape, k, d.K);
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
bool takes_direct_features(const LinearShape&) { return false; }
bool takes_direct_inputs(const LinearShape&) { return false; }
void feature_sums(const LinearShape&, const float*, const float*, int64_t, float*) {}
void input_gradients(const LinearShape&, const float*, const float*, int64_t, float*) {}
bool takes_flat(const ConvShape&) { return false; }
void convolve_flat(const ConvShape&, const float*, const float*, const float*, bool, float*) {}
bool takes_direct_gradient(const ConvShape&) { return false; }
int gradient_filters(const ConvShape&, int64_t, int64_t) { return 1; }
int64_t gradient_sums(const ConvShape&, int64_t) { return 0; }
void direct_gradient(const Gradient&,
                     const float*,
                     const float*,
                     int64_t,
                     int64_t,
                     int64_t,
                     float*,
                     float*,
                     float*) {}
bool takes_direct(const ConvShape&) { return false; }
bool fuses() { return false; }
std::vector<int64_t> filter_tiles(int64_t) { return {}; }
void flat_sums(int,
               const float*,
               const int64_t*,
               int64_t,
               int64_t,
               int64_t,
               const float*,
               const float*,
               float*,
               int64_t) {}
int tile_filters(int64_t, int64_t) { return 1; }
void direct_row(const Direct&, const float*, const float*, int64_t, float*, const float*, int64_t) {
}
#endif

}  // namespace convnet::cpu
