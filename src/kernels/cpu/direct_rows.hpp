// The loops of a direct convolution, for one kind of vectors. direct.cpp includes this once for each, within a namespace of
// its own, with
//   CONVNET_TARGET   the attribute that lets the compiler use them
//   CONVNET_VECTOR   their bytes
// (No include guard. Vectors are of use here, other than in vectorised(), since every function has its target from the start.)

typedef float Floats __attribute__((vector_size(CONVNET_VECTOR), aligned(4), may_alias));
typedef int Signs __attribute__((vector_size(CONVNET_VECTOR)));
constexpr int64_t kVector = CONVNET_VECTOR / 4;

// kF filters and kV vectors of lanes: all sums stay in registers while all channels and taps go by.
template <int kF, int kV>
CONVNET_TARGET void row_tile(const Direct& d,
                             const float* x,
                             const float* weight,
                             int64_t k,
                             float* y,
                             const float* mask,
                             int64_t p) {
  const ConvShape& s = d.shape;
  const int64_t L = s.lanes, plane = s.P * s.Q * L, top = p * s.stride - s.pad_top;
  const int64_t r0 = top < 0 ? -top : 0, r1 = top + s.R > s.H ? s.H - top : s.R;
  for (int64_t q = 0; q < s.Q; ++q) {
    const int64_t left = q * s.stride - s.pad_left;
    const int64_t s0 = left < 0 ? -left : 0, s1 = left + s.S > s.W ? s.W - left : s.S;
    Floats sum[kF][kV];
    for (int f = 0; f < kF; ++f)
      for (int v = 0; v < kV; ++v) sum[f][v] = Floats{} + (d.bias ? d.bias[k + f] : 0.0f);
    for (int64_t c = 0; c < d.C; ++c) {
      for (int64_t r = r0; r < r1; ++r) {
        const float* from = x + ((c * s.H + top + r) * s.W + left + s0) * L;
        const float* w = weight + ((c * s.R + r) * s.S + s0) * kF;
        for (int64_t tap = s0; tap < s1; ++tap, from += L, w += kF) {
          Floats value[kV];
          for (int v = 0; v < kV; ++v)
            value[v] = *reinterpret_cast<const Floats*>(from + v * kVector);
#pragma GCC unroll 16
          for (int f = 0; f < kF; ++f)
#pragma GCC unroll 2
            for (int v = 0; v < kV; ++v) sum[f][v] += value[v] * w[f];
        }
      }
    }
    for (int f = 0; f < kF; ++f) {
      for (int v = 0; v < kV; ++v) {
        const int64_t at = f * plane + (p * s.Q + q) * L + v * kVector;
        Floats result = sum[f][v];
        if (d.relu) result = result <= 0.0f ? Floats{} : result;
        if (mask) result = *reinterpret_cast<const Floats*>(mask + at) > 0.0f ? result : Floats{};
        *reinterpret_cast<Floats*>(y + at) = result;
      }
    }
  }
}

// All lanes; the last vector may overlap the one before.
template <int kF>
CONVNET_TARGET void row(const Direct& d,
                        const float* x,
                        const float* weight,
                        int64_t k,
                        float* y,
                        const float* mask,
                        int64_t p) {
  const int64_t L = d.shape.lanes;
  int64_t lane = 0;
  for (; lane + 2 * kVector <= L; lane += 2 * kVector)
    row_tile<kF, 2>(d, x + lane, weight, k, y + lane, mask ? mask + lane : nullptr, p);
  for (; lane < L; lane += kVector) {
    const int64_t first = lane + kVector <= L ? lane : L - kVector;
    row_tile<kF, 1>(d, x + first, weight, k, y + first, mask ? mask + first : nullptr, p);
  }
}

// ---- of few images: vectors along the rows

// kF filters and kV vectors of neighbouring pixels and lanes, for `taps` taps of C channels that lie `step` apart: tap t
// reads x + offset[t]. y: [filter] rows of n values.
template <int kF, int kV>
CONVNET_TARGET void flat_tile(const float* x,
                              const int64_t* offset,
                              int64_t taps,
                              int64_t C,
                              int64_t step,
                              const float* weight,
                              const float* bias,
                              float* y,
                              int64_t n) {
  Floats sum[kF][kV];
  for (int f = 0; f < kF; ++f)
    for (int v = 0; v < kV; ++v) sum[f][v] = Floats{} + (bias ? bias[f] : 0.0f);
  for (int64_t c = 0; c < C; ++c, x += step) {
    for (int64_t t = 0; t < taps; ++t, weight += kF) {
      const float* const from = x + offset[t];
      Floats value[kV];
      for (int v = 0; v < kV; ++v) value[v] = *reinterpret_cast<const Floats*>(from + v * kVector);
#pragma GCC unroll 16
      for (int f = 0; f < kF; ++f)
#pragma GCC unroll 2
        for (int v = 0; v < kV; ++v) sum[f][v] += value[v] * weight[f];
    }
  }
  for (int f = 0; f < kF; ++f)
    for (int v = 0; v < kV; ++v) *reinterpret_cast<Floats*>(y + f * n + v * kVector) = sum[f][v];
}

// A run of n values, a whole number of vectors.
template <int kF>
CONVNET_TARGET void flat_run(const float* x,
                             const int64_t* offset,
                             int64_t taps,
                             int64_t C,
                             int64_t step,
                             const float* weight,
                             const float* bias,
                             float* y,
                             int64_t n) {
  int64_t i = 0;
  for (; i + 2 * kVector <= n; i += 2 * kVector)
    flat_tile<kF, 2>(x + i, offset, taps, C, step, weight, bias, y + i, n);
  if (i < n) flat_tile<kF, 1>(x + i, offset, taps, C, step, weight, bias, y + i, n);
}

// Features of a linear layer for a few lanes: sums [lane] rows of ld values, n of K features; four inputs at a time, added
// to each other first: thousands of products one after the other into one sum would lose two bits more.
inline CONVNET_TARGET void few_sums(const float* x,
                                    const float* weight,
                                    int64_t C,
                                    int64_t K,
                                    int64_t L,
                                    int64_t n,
                                    float* sums,
                                    int64_t ld) {
  for (int64_t l = 0; l < L; ++l)
    for (int64_t k = 0; k < n; ++k) sums[l * ld + k] = 0.0f;
  int64_t c = 0;
  for (; c + 4 <= C; c += 4) {
    const float* const w = weight + c * K;
    for (int64_t l = 0; l < L; ++l) {
      const float factor[4] = {x[c * L + l], x[(c + 1) * L + l], x[(c + 2) * L + l],
                               x[(c + 3) * L + l]};
      float* const sum = sums + l * ld;
      int64_t k = 0;
      for (; k + kVector <= n; k += kVector) {
        if (l == 0)  // the weights of the next four inputs are under way meanwhile
          for (int i = 0; i < 4; ++i) __builtin_prefetch(w + (4 + i) * K + k, 0, 2);
        Floats part = *reinterpret_cast<const Floats*>(w + k) * factor[0];
        for (int i = 1; i < 4; ++i)
          part += *reinterpret_cast<const Floats*>(w + i * K + k) * factor[i];
        *reinterpret_cast<Floats*>(sum + k) += part;
      }
      for (; k < n; ++k) {
        float part = 0.0f;
        for (int i = 0; i < 4; ++i) part += w[i * K + k] * factor[i];
        sum[k] += part;
      }
    }
  }
  for (; c < C; ++c)
    for (int64_t l = 0; l < L; ++l)
      for (int64_t k = 0; k < n; ++k) sums[l * ld + k] += weight[c * K + k] * x[c * L + l];
}

// ---- linear layers

// kL lanes and kV vectors of features, over `depth` inputs, added to sums [lane], rows of n features; weights in rows of K.
// For every row of these a line of later ones is fetched, which begin at `next`.
template <int kL, int kV>
CONVNET_TARGET void features_tile(const float* x,
                                  int64_t L,
                                  const float* weight,
                                  int64_t K,
                                  int64_t depth,
                                  float* sums,
                                  int64_t n,
                                  const float* next) {
  Floats sum[kL][kV];
  for (int l = 0; l < kL; ++l)
    for (int v = 0; v < kV; ++v) sum[l][v] = Floats{};
  for (int64_t c = 0; c < depth; ++c, x += L, weight += K, next += K) {
    __builtin_prefetch(next, 0, 2);
    Floats value[kV];
    for (int v = 0; v < kV; ++v) value[v] = *reinterpret_cast<const Floats*>(weight + v * kVector);
#pragma GCC unroll 8
    for (int l = 0; l < kL; ++l)
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sum[l][v] += value[v] * x[l];
  }
  for (int l = 0; l < kL; ++l)
    for (int v = 0; v < kV; ++v)
      *reinterpret_cast<Floats*>(sums + l * n + v * kVector) += sum[l][v];
}

// n features of a linear layer, a whole number of vectors: sums [lane] rows of ld values. Some inputs at a time, so
// that their weights, which lie far apart, are read from memory once and then from the cache.
template <int kL, int kV>
CONVNET_TARGET void features(const float* x,
                             const float* weight,
                             int64_t C,
                             int64_t K,
                             int64_t L,
                             int64_t n,
                             float* sums,
                             int64_t ld) {
  constexpr int64_t kDepth = 32, kStep = kV * kVector;
  for (int64_t l = 0; l < L; ++l)
    for (int64_t k = 0; k < n; ++k) sums[l * ld + k] = 0.0f;
  for (int64_t c = 0; c < C; c += kDepth) {
    const int64_t depth = C - c < kDepth ? C - c : kDepth, lines = n / 16;
    const float* const w = weight + c * K;
    int64_t line = 0;
    for (int64_t l = 0; l < L; l += kL) {
      for (int64_t k = 0; k < n; k += kStep, ++line) {
        const float* const next =
            w + (c + 2 * kDepth <= C ? kDepth * K : 0) + (line < lines ? line * 16 : 0);
        if (l + kL <= L)
          features_tile<kL, kV>(x + c * L + l, L, w + k, K, depth, sums + l * ld + k, ld, next);
        else
          for (int64_t rest = l; rest < L; ++rest)
            features_tile<1, kV>(x + c * L + rest, L, w + k, K, depth, sums + rest * ld + k, ld,
                                 next);
      }
    }
  }
}

// kF inputs' gradients and kV vectors of lanes: dx [input][lane] = sum over K outputs of weight [input][output] dy.
template <int kF, int kV>
CONVNET_TARGET void inputs_tile(
    const float* dy, int64_t L, const float* weight, int64_t K, float* dx) {
  Floats sum[kF][kV];
  for (int f = 0; f < kF; ++f)
    for (int v = 0; v < kV; ++v) sum[f][v] = Floats{};
  for (int64_t k = 0; k < K; ++k, dy += L) {
    Floats value[kV];
    for (int v = 0; v < kV; ++v) value[v] = *reinterpret_cast<const Floats*>(dy + v * kVector);
#pragma GCC unroll 8
    for (int f = 0; f < kF; ++f)
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sum[f][v] += value[v] * weight[f * K + k];
  }
  for (int f = 0; f < kF; ++f)
    for (int v = 0; v < kV; ++v) *reinterpret_cast<Floats*>(dx + f * L + v * kVector) = sum[f][v];
}

// Some inputs. Lanes in whole vectors.
template <int kV>
CONVNET_TARGET void inputs(
    const float* dy, const float* weight, int64_t C, int64_t K, int64_t L, float* dx) {
  for (int64_t c = 0; c < C;) {
    const int64_t filters = C - c >= 6 ? 6 : 1;
    int64_t l = 0;
    for (; l + kV * kVector <= L; l += kV * kVector)
      filters == 6 ? inputs_tile<6, kV>(dy + l, L, weight + c * K, K, dx + c * L + l)
                   : inputs_tile<1, kV>(dy + l, L, weight + c * K, K, dx + c * L + l);
    for (; l < L; l += kVector)
      filters == 6 ? inputs_tile<6, 1>(dy + l, L, weight + c * K, K, dx + c * L + l)
                   : inputs_tile<1, 1>(dy + l, L, weight + c * K, K, dx + c * L + l);
    c += filters;
  }
}

// ---- the gradient of the filters

// Adds the products of kT taps and kK filters over `rows` rows of outputs, of n values each: sums[tap][filter], a sum for
// every lane of a vector. Tap t reads x + offset[t].
template <int kT, int kK>
CONVNET_TARGET void add_products(const float* x,
                                 const int64_t* offset,
                                 int64_t x_row,
                                 const float* dy,
                                 int64_t plane,
                                 int64_t rows,
                                 int64_t n,
                                 float* sums) {
  Floats sum[kT][kK];
  for (int t = 0; t < kT; ++t)
    for (int k = 0; k < kK; ++k)
      sum[t][k] = *reinterpret_cast<const Floats*>(sums + (t * kK + k) * kVector);
  for (int64_t p = 0; p < rows; ++p, x += x_row, dy += n) {
    for (int64_t i = 0; i < n; i += kVector) {
      Floats value[kT];
      for (int t = 0; t < kT; ++t) value[t] = *reinterpret_cast<const Floats*>(x + offset[t] + i);
#pragma GCC unroll 8
      for (int k = 0; k < kK; ++k) {
        Floats slope = *reinterpret_cast<const Floats*>(dy + k * plane + i);
        asm(""
            : "+v"(
                slope));  // loaded once, not once for every tap: loads are what this loop waits for
#pragma GCC unroll 3
        for (int t = 0; t < kT; ++t) sum[t][k] += value[t] * slope;
      }
    }
  }
  for (int t = 0; t < kT; ++t)
    for (int k = 0; k < kK; ++k)
      *reinterpret_cast<Floats*>(sums + (t * kK + k) * kVector) = sum[t][k];
}

// kK filters from k on and the channels c0 to c1 of a group. Rows of x are laid out anew for some rows of outputs at a time:
// with zeros at both sides, and a plane for each remainder of the column by the stride, so that the pixels under a tap are one
// run of memory, as those of dy are.
template <int kK>
CONVNET_TARGET void gradient_tile(const Gradient& d,
                                  const float* x,
                                  const float* dy,
                                  int64_t k,
                                  int64_t c0,
                                  int64_t c1,
                                  float* sums,
                                  float* pixels,
                                  float* dweight) {
  const ConvShape& s = d.shape;
  const int64_t L = s.lanes, n = s.Q * L, plane = s.P * n, taps = s.R * s.S;
  const int64_t band = gradient_band(s), band_rows = (band - 1) * s.stride + s.R,
                row = gradient_row(s);
  const int64_t width = row / (s.stride < s.S ? s.stride : s.S);  // of a plane
  for (int64_t i = 0; i < (c1 - c0) * taps * kK * kVector; ++i) sums[i] = 0.0f;
  for (int64_t block = 0; block < s.N / L; ++block) {
    const float* const images = x + block * s.C * s.H * s.W * L;
    const float* const slopes = dy + (block * s.K + k) * plane;
    for (int64_t p0 = 0; p0 < s.P; p0 += band) {
      const int64_t p1 = p0 + band < s.P ? p0 + band : s.P, top = p0 * s.stride - s.pad_top;
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t i = 0; i < band_rows; ++i) {
          const int64_t h = top + i;
          if (h < 0 || h >= s.H) continue;
          const float* const from = images + (c * s.H + h) * s.W * L;
          for (int64_t phase = 0; phase < s.stride && phase < s.S; ++phase) {
            float* to = pixels + ((c - c0) * band_rows + i) * row + phase * width;
            for (int64_t w = phase - s.pad_left, end = w + width / L * s.stride; w < end;
                 w += s.stride, to += L) {
              const bool exists = w >= 0 && w < s.W;
              for (int64_t l = 0; l < L; l += kVector)
                *reinterpret_cast<Floats*>(to + l) =
                    exists ? *reinterpret_cast<const Floats*>(from + w * L + l) : Floats{};
            }
          }
        }
        for (int64_t r = 0; r < s.R; ++r) {
          // rows of outputs whose row under r is in the image
          const Range there = inside(r, s.stride, s.pad_top, s.H, p0, p1);
          if (there.first >= there.last) continue;
          const float* const first =
              pixels + ((c - c0) * band_rows + (there.first - p0) * s.stride + r) * row;
          const float* const slope = slopes + there.first * n;
          const int64_t rows = there.last - there.first;
          float* to = sums + ((c - c0) * taps + r * s.S) * kK * kVector;
          for (int64_t tap = 0; tap < s.S; tap += 3) {
            int64_t offset[3];
            for (int64_t t = 0; t < 3; ++t)
              offset[t] = (tap + t) % s.stride * width + (tap + t) / s.stride * L;
            if (tap + 3 <= s.S)
              add_products<3, kK>(first, offset, s.stride * row, slope, plane, rows, n, to);
            else if (tap + 2 == s.S)
              add_products<2, kK>(first, offset, s.stride * row, slope, plane, rows, n, to);
            else
              add_products<1, kK>(first, offset, s.stride * row, slope, plane, rows, n, to);
            to += 3 * kK * kVector;
          }
        }
      }
    }
  }
  for (int64_t tap = 0; tap < (c1 - c0) * taps; ++tap) {
    for (int f = 0; f < kK; ++f) {
      const float* const lanes = sums + (tap * kK + f) * kVector;
      float total = 0.0f;
      for (int64_t l = 0; l < kVector; ++l) total += lanes[l];
      dweight[(c0 * taps + tap) * d.K + k + f] = total;
    }
  }
}
