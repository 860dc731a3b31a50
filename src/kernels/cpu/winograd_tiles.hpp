// The transformations of tiles, for one kind of vectors. winograd.cpp includes this once for each, within a namespace of its
// own, with CONVNET_TARGET (see direct_rows.hpp). Functions are of kR x kR filters, and of vectors of kW lanes.
// (No include guard.)

template <int kW>
struct Vector {
  typedef float Lanes __attribute__((vector_size(4 * kW)));
  typedef Lanes Anywhere __attribute__((aligned(4), may_alias));
};

template <int kW>
CONVNET_TARGET inline typename Vector<kW>::Lanes load(const float* from) {
  return *reinterpret_cast<const typename Vector<kW>::Anywhere*>(from);
}

template <int kW>
CONVNET_TARGET inline void store(float* to, typename Vector<kW>::Lanes values) {
  *reinterpret_cast<typename Vector<kW>::Anywhere*>(to) = values;
}

// The matrix of factor(i, j), kI x kJ, times a column of vectors: to[i * step] = sum over j of factor(i, j) in[j].
// Factors of 0 cost nothing.
template <int kI, int kJ, class Factor, class Lanes>
CONVNET_TARGET CONVNET_INLINE inline void multiply(const Factor& factor,
                                                   const Lanes* in,
                                                   Lanes* to,
                                                   int step) {
#pragma GCC unroll 8
  for (int i = 0; i < kI; ++i) {
    Lanes total{};
    bool begun = false;
#pragma GCC unroll 8
    for (int j = 0; j < kJ; ++j)
      if (factor(i, j) != 0.0f) {
        const Lanes term = in[j] * factor(i, j);
        total = begun ? total + term : term;
        begun = true;
      }
    to[i * step] = total;
  }
}

// M in M^T of a tile of kJ x kJ vectors, M being the matrix of factor(i, j), kI x kJ: in[row * kJ + column].
template <int kI, int kJ, class Factor, class Lanes>
CONVNET_TARGET CONVNET_INLINE inline void transform(const Factor& factor,
                                                    const Lanes* in,
                                                    Lanes* to) {
  Lanes half[kJ * kI];
  for (int row = 0; row < kJ; ++row)  // in M^T, transposed
    multiply<kI, kJ>(factor, in + row * kJ, half + row, kJ);
  for (int column = 0; column < kI; ++column)
    multiply<kI, kJ>(factor, half + column * kJ, to + column, kI);
}

// B^T d B of units first to last of one channel, [H][W][L]: element e of a tile goes to to[e * step].
template <int kR, int kW>
CONVNET_TARGET void transform_pixels(const ConvShape& s,
                                     const Units& units,
                                     const float* x,
                                     int64_t first,
                                     int64_t last,
                                     float* to,
                                     int64_t step) {
  constexpr int kT = kR + 1, kE = Matrices<kR>::kE;
  using Lanes = typename Vector<kW>::Lanes;
  for (int64_t unit = first; unit < last; ++unit, to += kW) {
    const Place at = units.place(unit);
    const int64_t top = 2 * at.i - s.pad_top, left = 2 * at.j - s.pad_left;
    Lanes d[kT * kT], elements[kE * kE];
    for (int64_t i = 0; i < kT; ++i)
      for (int64_t j = 0; j < kT; ++j) {
        const int64_t h = top + i, w = left + j;
        const bool exists = h >= 0 && h < s.H && w >= 0 && w < s.W;
        d[i * kT + j] = exists ? load<kW>(x + (h * s.W + w) * s.lanes + at.lane) : Lanes{};
      }
    transform<kE, kT>([](int i, int j) { return Matrices<kR>::B[i][j]; }, d, elements);
    for (int64_t e = 0; e < kE * kE; ++e) store<kW>(to + e * step, elements[e]);
  }
}

// A dy A^T of one filter, [P][Q][L].
template <int kR, int kW>
CONVNET_TARGET void transform_slopes(const ConvShape& s,
                                     const Units& units,
                                     const float* dy,
                                     int64_t first,
                                     int64_t last,
                                     float* to,
                                     int64_t step) {
  constexpr int kE = Matrices<kR>::kE;
  using Lanes = typename Vector<kW>::Lanes;
  for (int64_t unit = first; unit < last; ++unit, to += kW) {
    const Place at = units.place(unit);
    Lanes slopes[4], elements[kE * kE];
    for (int64_t i = 0; i < 2; ++i)
      for (int64_t j = 0; j < 2; ++j) {
        const int64_t p = 2 * at.i + i, q = 2 * at.j + j;
        const bool exists = p < s.P && q < s.Q;
        slopes[2 * i + j] = exists ? load<kW>(dy + (p * s.Q + q) * s.lanes + at.lane) : Lanes{};
      }
    transform<kE, 2>([](int i, int j) { return Matrices<kR>::A[j][i]; }, slopes, elements);
    for (int64_t e = 0; e < kE * kE; ++e) store<kW>(to + e * step, elements[e]);
  }
}

// A^T m A of one filter, + bias, then ReLU, or 0 where mask is not positive: element e of a tile is at m[e * step].
template <int kR, int kW>
CONVNET_TARGET void write_outputs(const ConvShape& s,
                                  const Units& units,
                                  int64_t first,
                                  int64_t last,
                                  const float* m,
                                  int64_t step,
                                  float bias,
                                  bool relu,
                                  float* y,
                                  const float* mask) {
  constexpr int kE = Matrices<kR>::kE;
  using Lanes = typename Vector<kW>::Lanes;
  for (int64_t unit = first; unit < last; ++unit, m += kW) {
    const Place at = units.place(unit);
    Lanes elements[kE * kE], outputs[4];
    for (int64_t e = 0; e < kE * kE; ++e) elements[e] = load<kW>(m + e * step);
    transform<2, kE>([](int i, int j) { return Matrices<kR>::A[i][j]; }, elements, outputs);
    for (int64_t i = 0; i < 2; ++i)
      for (int64_t j = 0; j < 2; ++j) {
        const int64_t p = 2 * at.i + i, q = 2 * at.j + j, place = (p * s.Q + q) * s.lanes + at.lane;
        if (p >= s.P || q >= s.Q) continue;
        Lanes value = outputs[2 * i + j] + bias;
        if (relu) value = value <= 0.0f ? Lanes{} : value;
        if (mask) value = load<kW>(mask + place) > 0.0f ? value : Lanes{};
        store<kW>(y + place, value);
      }
  }
}

constexpr int kMost = 16;  // filters at a time of the two that follow

// G g G^T of `filters` filters of a group, from k on: [element][channel][filter].
template <int kR>
CONVNET_TARGET void transform_weights(
    const Filters& weight, int64_t group, int64_t C, int64_t k, int filters, float* to) {
  constexpr int kE = Matrices<kR>::kE;
  using Lanes = typename Vector<kMost>::Lanes;
  const float* from = weight.first + group * weight.by_group + k * weight.by_filter;
  for (int64_t c = 0; c < C; ++c, from += weight.by_channel) {
    Lanes g[kR * kR] = {}, elements[kE * kE];
    for (int tap = 0; tap < kR * kR; ++tap)
      for (int f = 0; f < filters; ++f)
        g[tap][f] = from[tap * weight.by_tap + f * weight.by_filter];
    transform<kE, kR>([](int i, int j) { return Matrices<kR>::G[i][j]; }, g, elements);
    for (int e = 0; e < kE * kE; ++e)
      for (int f = 0; f < filters; ++f) to[(e * C + c) * filters + f] = elements[e][f];
  }
}

// G^T m G of a channel, of all K filters: element e is at m[e * step], tap t goes to to[t * K].
template <int kR>
CONVNET_TARGET void write_gradient(const float* m, int64_t step, int64_t K, float* to) {
  constexpr int kE = Matrices<kR>::kE;
  using Lanes = typename Vector<kMost>::Lanes;
  for (int64_t k = 0; k < K; k += kMost) {
    const int64_t filters = K - k < kMost ? K - k : kMost;
    Lanes elements[kE * kE] = {}, taps[kR * kR];
    for (int e = 0; e < kE * kE; ++e)
      for (int64_t f = 0; f < filters; ++f) elements[e][f] = m[e * step + k + f];
    transform<kR, kE>([](int i, int j) { return Matrices<kR>::G[j][i]; }, elements, taps);
    for (int tap = 0; tap < kR * kR; ++tap)
      for (int64_t f = 0; f < filters; ++f) to[tap * K + k + f] = taps[tap][f];
  }
}

template <int kR, int kW>
constexpr Steps steps{transform_pixels<kR, kW>, transform_slopes<kR, kW>, write_outputs<kR, kW>,
                      transform_weights<kR>, write_gradient<kR>};

inline const Steps& chosen(const ConvShape& shape, const Units& units) {
  if (shape.R == 3) return units.width == 16 ? steps<3, 16> : steps<3, 8>;
  return units.width == 16 ? steps<5, 16> : steps<5, 8>;
}
