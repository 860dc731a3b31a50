#include "winograd.hpp"

#include <algorithm>
#include <vector>

#include "direct.hpp"
#include "level.hpp"
#include "work.hpp"

namespace convnet::cpu {
namespace {

// Bytes of transformed pixels that a core's cache holds; all cores' together hold 4 tile_bytes().
constexpr int64_t kCached = 1 << 19;

// The rows and columns of a tile, in tiles, and the first lane of a unit.
struct Place {
  int64_t i, j, lane;
};

// Outputs in tiles of 2 x 2, and in units: some lanes of a tile, a vector of 16 or 8.
struct Units {
  explicit Units(const ConvShape& s)
      : width(s.lanes % 16 ? 8 : 16),
        parts(s.lanes / width),
        across((s.Q + 1) / 2),
        count((s.P + 1) / 2 * across * parts) {}
  int64_t width, parts, across, count;

  CONVNET_INLINE Place place(int64_t unit) const {
    const int64_t tile = unit / parts;
    return {tile / across, tile % across, unit % parts * width};
  }
};

// A and B are written as their transposes. kE elements in a row stand for the kR + 1 pixels of a tile's. All factors are
// 1 and 1/2: integers stay exact, and sums are no worse than those of all products (of 5 x 5 by 36 elements they would be).
template <int kR>
struct Matrices {
  static constexpr int kE = 4;
  static constexpr float A[2][4] = {{1, 1, 1, 0}, {0, 1, -1, -1}};
  static constexpr float G[4][3] = {{1, 0, 0}, {.5f, .5f, .5f}, {.5f, -.5f, .5f}, {0, 0, 1}};
  static constexpr float B[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}};
};

// Three taps and two: F(2, 3) of the first four pixels and F(2, 2) of the last three.
template <>
struct Matrices<5> {
  static constexpr int kE = 7;
  static constexpr float A[2][7] = {{1, 1, 1, 0, 1, 1, 0}, {0, 1, -1, -1, 0, 1, -1}};
  static constexpr float G[7][5] = {{1, 0, 0, 0, 0}, {.5f, .5f, .5f, 0, 0}, {.5f, -.5f, .5f, 0, 0},
                                    {0, 0, 1, 0, 0}, {0, 0, 0, 1, 0},       {0, 0, 0, 1, 1},
                                    {0, 0, 0, 0, 1}};
  static constexpr float B[7][6] = {{1, 0, -1, 0, 0, 0}, {0, 1, 1, 0, 0, 0},  {0, -1, 1, 0, 0, 0},
                                    {0, 1, 0, -1, 0, 0}, {0, 0, 0, 1, -1, 0}, {0, 0, 0, 0, 1, 0},
                                    {0, 0, 0, 0, 1, -1}};
};

int64_t elements_of(const ConvShape& s) {
  return s.R == 3 ? Matrices<3>::kE * Matrices<3>::kE : Matrices<5>::kE * Matrices<5>::kE;
}

// What is done to tiles (winograd_tiles.hpp), for one size of filters, by vectors of the processor's.
using Transform =
    void (*)(const ConvShape&, const Units&, const float*, int64_t, int64_t, float*, int64_t);
struct Steps {
  Transform pixels, slopes;
  void (*outputs)(const ConvShape&,
                  const Units&,
                  int64_t,
                  int64_t,
                  const float*,
                  int64_t,
                  float,
                  bool,
                  float*,
                  const float*);
  void (*weights)(const Filters&, int64_t, int64_t, int64_t, int, float*);
  void (*gradient)(const float*, int64_t, int64_t, float*);
};

#if defined(__x86_64__)
namespace avx512 {
#define CONVNET_TARGET CONVNET_AVX512
#include "winograd_tiles.hpp"
#undef CONVNET_TARGET
}  // namespace avx512

namespace avx2 {
#define CONVNET_TARGET CONVNET_AVX2
#include "winograd_tiles.hpp"
#undef CONVNET_TARGET
}  // namespace avx2

const Steps& chosen(const ConvShape& shape, const Units& units) {
  return level() == Level::avx512 ? avx512::chosen(shape, units) : avx2::chosen(shape, units);
}
#else
const Steps& chosen(const ConvShape&, const Units&) {
  static const Steps none{};
  return none;
}
#endif

}  // namespace

namespace {

// Whether the products saved are worth the transformations: so many products are made of every value that is transformed.
bool many_products(const ConvShape& s, int64_t least) {
  const int64_t C = s.C / s.groups, K = s.K / s.groups;
  return C * K >= least * (C + K);
}

}  // namespace

bool takes_winograd(const ConvShape& s) {
  if (!fuses() || (s.R != 3 && s.R != 5) || s.S != s.R || s.stride != 1 || s.lanes % 8)
    return false;
  const int64_t products = elements_of(s) * ((s.P + 1) / 2) * ((s.Q + 1) / 2);
  return 4 * products < 3 * s.R * s.S * s.P * s.Q && many_products(s, 32);
}

void convolve_winograd(const ConvShape& s,
                       const float* x,
                       const Filters& weight,
                       const float* bias,
                       bool relu,
                       float* y,
                       const float* mask) {
  const int64_t g = s.groups, C = s.C / g, K = s.K / g, plane = s.P * s.Q * s.lanes;
  const int64_t elements = elements_of(s);
  const Units units(s);
  const Steps& steps = chosen(s, units);
  const std::vector<int64_t> tiles = filter_tiles(K);
  const int64_t many = static_cast<int64_t>(tiles.size());
  float* const filters = scratch(Scratch::shared, elements * g * C * K);
  in_parallel(g * many, [&](int64_t index) {
    const int64_t group = index / many, k = tiles[static_cast<std::size_t>(index % many)];
    steps.weights(weight, group, C, k, tile_filters(k, K),
                  filters + (group * K + k) * elements * C);
  });

  const int64_t columns =
      std::clamp(kCached / (elements * C * 4) / 32 * 32, int64_t{32}, int64_t{128});
  const int64_t piece = columns / units.width, pieces = (units.count + piece - 1) / piece;
  in_parallel(s.N / s.lanes * g * pieces, [&](int64_t index) {
    const int64_t part = index / pieces, group = part % g;
    const int64_t first = index % pieces * piece, last = std::min(first + piece, units.count);
    const int64_t n = ((last - first) * units.width + 15) / 16 * 16, here = 0;
    float* const pixels = scratch(Scratch::pixels, elements * C * n);         // [element][channel]
    float* const sums = scratch(Scratch::sums, elements * kMostFilters * n);  // [element][filter]
    for (int64_t c = 0; c < C; ++c)
      steps.pixels(s, units, x + (part * C + c) * s.H * s.W * s.lanes, first, last, pixels + c * n,
                   C * n);
    for (const int64_t k : tiles) {
      const int those = tile_filters(k, K);
      const float* const own = filters + (group * K + k) * elements * C;
      for (int64_t e = 0; e < elements; ++e)
        flat_sums(those, pixels + e * C * n, &here, 1, C, n, own + e * C * those, nullptr,
                  sums + e * those * n, n);
      for (int64_t f = 0; f < those; ++f) {
        const int64_t at = (part * K + k + f) * plane;
        steps.outputs(s, units, first, last, sums + f * n, those * n,
                      bias ? bias[group * K + k + f] : 0.0f, relu, y + at,
                      mask ? mask + at : nullptr);
      }
    }
  });
}

// Here what is transformed lies in memory before it is used. The 49 elements of larger filters are too much of it.
bool takes_winograd_gradient(const ConvShape& shape) {
  return has_blas() && shape.R == 3 && takes_winograd(shape) && many_products(shape, 64);
}

void winograd_gradient(const ConvShape& s, const float* x, const float* dy, float* dweight) {
  const int64_t g = s.groups, C = s.C / g, K = s.K / g, plane = s.P * s.Q * s.lanes;
  const int64_t elements = elements_of(s);
  const Units units(s);
  const Steps& steps = chosen(s, units);
  const int64_t most =
      std::max<int64_t>(1, 4 * tile_bytes() / (elements * (C + K) * 4 * units.width));
  const int64_t pieces = (units.count + most - 1) / most,
                piece = (units.count + pieces - 1) / pieces, ld = piece * units.width;
  float* const pixels = scratch(Scratch::shared, elements * ((C + K) * ld + C * K));
  float* const slopes = pixels + elements * C * ld;
  float* const sums = slopes + elements * K * ld;  // [element][channel][filter]
  for (int64_t group = 0; group < g; ++group) {
    for (int64_t part = group; part < s.N / s.lanes * g; part += g) {
      for (int64_t first = 0; first < units.count; first += piece) {
        const int64_t last = std::min(first + piece, units.count);
        in_parallel(C + K, [&](int64_t index) {
          if (index < C)
            steps.pixels(s, units, x + (part * C + index) * s.H * s.W * s.lanes, first, last,
                         pixels + index * ld, C * ld);
          else
            steps.slopes(s, units, dy + (part * K + index - C) * plane, first, last,
                         slopes + (index - C) * ld, K * ld);
        });
        in_parallel(elements, [&](int64_t e) {
          product(C, K, (last - first) * units.width, {pixels + e * C * ld, ld},
                  {slopes + e * K * ld, ld, true}, sums + e * C * K, K, part > group || first > 0);
        });
      }
    }
    in_parallel(C, [&](int64_t c) {
      steps.gradient(sums + c * K, C * K, K, dweight + (group * C + c) * s.R * s.S * K);
    });
  }
}

}  // namespace convnet::cpu
