// The tensor-core products on small problems, each against plain loops: products NAME [seed]. Prints "ok", how many
// values are wrong, or "error: " and what the emulator says. Inputs are small integers, so that every sum is exact and one
// missing, doubled or misplaced term shows. For tools/remove_barriers.py, which builds this with one line of a kernel missing.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "arch/arch.cuh"
#include "tile/wgmma_filter.cuh"
#include "tile/wgmma_filter_tf32.cuh"
#include "tile/wgmma_maps.cuh"
#include "tile/wgmma_maps_tf32.cuh"
#include "tile/wgmma_window.cuh"

namespace convnet {
namespace {

constexpr int kL = 64;

// Values -3..3 without zero: a zero factor would hide a missing term.
struct Random {
  uint64_t state;
  int next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const int v = static_cast<int>(state >> 33) % 6;
    return v < 3 ? v - 3 : v - 2;
  }
};

template <class T>
T of_float(float x);
template <>
bf16 of_float(float x) {
  return to_bf16(x);
}
template <>
float of_float(float x) {
  return x;
}
float to_float(float x) { return x; }

// A tensor at a multiple of 128 bytes.
template <class T>
struct TensorOf {
  std::vector<T> memory;
  T* data;
  explicit TensorOf(std::size_t count) : memory(count + 128 / sizeof(T), of_float<T>(NAN)) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    data = memory.data() + (128 - address % 128) % 128 / sizeof(T);
  }
};
using Tensor = TensorOf<bf16>;

template <class T = bf16>
TensorOf<T> random_tensor(std::size_t count, Random& random) {
  TensorOf<T> t(count);
  for (std::size_t i = 0; i < count; ++i)
    t.data[i] = of_float<T>(static_cast<float>(random.next()));
  return t;
}

struct Problem {
  int blocks, groups, C, H, W, K, R, S, P, Q, stride, pad;  // C and K of a group
  int filters8() const { return (K + 7) / 8 * 8; }
  std::size_t x(int b, int g, int c, int h, int w) const {
    return ((((std::size_t(b) * groups + g) * C + c) * H + h) * W + w) * kL;
  }
  std::size_t y(int b, int g, int k, int p, int q) const {
    return ((((std::size_t(b) * groups + g) * K + k) * P + p) * Q + q) * kL;
  }
  std::size_t weight(int g, int c, int r, int s, int k) const {
    return (((std::size_t(g) * C + c) * R + r) * S + s) * filters8() + k;
  }
  // Of float32 weights and their gradient, whose rows have no padding.
  std::size_t parameter(int g, int c, int r, int s, int k) const {
    return (((std::size_t(g) * C + c) * R + r) * S + s) * K + k;
  }
  std::size_t parameters() const { return parameter(groups, 0, 0, 0, 0); }
  ConvShape shape() const {
    return {blocks * kL, groups * C, H, W, groups * K, R, S, P, Q, stride, pad, pad, groups, kL};
  }
  std::size_t x_count() const { return x(blocks, 0, 0, 0, 0); }
  std::size_t y_count() const { return y(blocks, 0, 0, 0, 0); }

  // Calls f(b, g, c, k, r, s, p, q, h, w) for every product of the convolution.
  template <class F>
  void for_each(F f) const {
    for (int b = 0; b < blocks; ++b)
      for (int g = 0; g < groups; ++g)
        for (int k = 0; k < K; ++k)
          for (int c = 0; c < C; ++c)
            for (int r = 0; r < R; ++r)
              for (int s = 0; s < S; ++s)
                for (int p = 0; p < P; ++p)
                  for (int q = 0; q < Q; ++q) {
                    const int h = p * stride - pad + r, w = q * stride - pad + s;
                    if (h >= 0 && h < H && w >= 0 && w < W) f(b, g, c, k, r, s, p, q, h, w);
                  }
  }
};

Tensor random_weight(const Problem& t, Random& random) {
  Tensor weight = random_tensor(t.weight(t.groups, 0, 0, 0, 0), random);
  for (std::size_t row = 0; row < t.weight(t.groups, 0, 0, 0, 0); row += t.filters8())
    for (int k = t.K; k < t.filters8(); ++k) weight.data[row + k] = bf16{0};
  return weight;
}

void report(int wrong) {
  if (wrong == 0)
    std::puts("ok");
  else
    std::printf("%d values are wrong\n", wrong);
}

int differences(const Tensor& found, const std::vector<float>& expected) {
  int wrong = 0;
  for (std::size_t i = 0; i < expected.size(); ++i)
    wrong += found.data[i].bits != to_bf16(expected[i]).bits;
  return wrong;
}

template <class T, class Shared>
void forward(const Problem& t, int parts) {
  Random random{1};
  Tensor x = random_tensor(t.x_count(), random), weight = random_weight(t, random), y(t.y_count());
  std::vector<float> bias(std::size_t(t.groups) * t.K), expected(t.y_count());
  for (float& b : bias) b = static_cast<float>(random.next());
  t.for_each([&](int b, int g, int c, int k, int r, int s, int p, int q, int h, int w) {
    for (int n = 0; n < kL; ++n)
      expected[t.y(b, g, k, p, q) + n] +=
          to_float(x.data[t.x(b, g, c, h, w) + n]) * to_float(weight.data[t.weight(g, c, r, s, k)]);
  });
  std::vector<float> partial(parts > 1 ? parts * t.y_count() : 0);
  const MapsCall call{image_activation(x.data, t.groups * t.C, t.H, t.W, t.blocks),
                      image_activation(y.data, t.groups * t.K, t.P, t.Q, t.blocks),
                      weight.data,
                      parts > 1 ? nullptr : bias.data(),
                      nullptr,
                      parts > 1 ? partial.data() : nullptr,
                      t.R,
                      t.S,
                      t.stride,
                      t.pad,
                      t.pad,
                      t.groups,
                      parts,
                      parts == 1};
  launch_maps<T, Shared>("forward", call, nullptr);
  if (parts > 1) {
    int wrong = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      float sum = 0;
      for (int part = 0; part < parts; ++part) sum += partial[part * t.y_count() + i];
      wrong += sum != expected[i];
    }
    return report(wrong);
  }
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const float v = expected[i] + bias[i / (std::size_t(t.P) * t.Q * kL) % bias.size()];
    expected[i] = v <= 0.0f ? 0.0f : v;
  }
  report(differences(y, expected));
}

template <class T, class Shared>
void backward_data(const Problem& t, bool masked = false) {
  Random random{2};
  Tensor dy = random_tensor(t.y_count(), random), weight = random_weight(t, random),
         dx(t.x_count()), mask = random_tensor(t.x_count(), random);
  std::vector<float> expected(t.x_count());
  t.for_each([&](int b, int g, int c, int k, int r, int s, int p, int q, int h, int w) {
    for (int n = 0; n < kL; ++n)
      expected[t.x(b, g, c, h, w) + n] += to_float(dy.data[t.y(b, g, k, p, q) + n]) *
                                          to_float(weight.data[t.weight(g, c, r, s, k)]);
  });
  for (std::size_t i = 0; i < expected.size(); ++i)
    if (masked && to_float(mask.data[i]) <= 0) expected[i] = 0;
  const MapsCall call{image_activation(dy.data, t.groups * t.K, t.P, t.Q, t.blocks),
                      image_activation(dx.data, t.groups * t.C, t.H, t.W, t.blocks),
                      weight.data,
                      nullptr,
                      masked ? mask.data : nullptr,
                      nullptr,
                      t.R,
                      t.S,
                      1,
                      t.R - 1 - t.pad,
                      t.S - 1 - t.pad,
                      t.groups,
                      1,
                      false};
  launch_maps<T, Shared>("backward_data", call, nullptr);
  report(differences(dx, expected));
}

int differences(const TensorOf<float>& found, const std::vector<float>& expected) {
  int wrong = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) wrong += found.data[i] != expected[i];
  return wrong;
}

template <class T>
void forward_tf32(const Problem& t) {
  Random random{1};
  const auto x = random_tensor<float>(t.x_count(), random),
             weight = random_tensor<float>(t.parameters(), random);
  TensorOf<float> y(t.y_count());
  std::vector<float> bias(std::size_t(t.groups) * t.K), expected(t.y_count());
  for (float& b : bias) b = static_cast<float>(random.next());
  t.for_each([&](int b, int g, int c, int k, int r, int s, int p, int q, int h, int w) {
    for (int n = 0; n < kL; ++n)
      expected[t.y(b, g, k, p, q) + n] +=
          x.data[t.x(b, g, c, h, w) + n] * weight.data[t.parameter(g, c, r, s, k)];
  });
  launch_maps_tf32<T>("forward", t.shape(),
                      float_activation(x.data, t.groups * t.C, t.H, t.W, t.blocks),
                      float_activation(y.data, t.groups * t.K, t.P, t.Q, t.blocks), weight.data,
                      {bias.data(), nullptr, y.data}, true, nullptr);
  for (std::size_t i = 0; i < expected.size(); ++i)
    expected[i] =
        std::max(expected[i] + bias[i / (std::size_t(t.P) * t.Q * kL) % bias.size()], 0.0f);
  report(differences(y, expected));
}

template <class T>
void backward_data_tf32(const Problem& t, bool masked = false) {
  Random random{2};
  const auto dy = random_tensor<float>(t.y_count(), random),
             weight = random_tensor<float>(t.parameters(), random),
             mask = random_tensor<float>(t.x_count(), random);
  TensorOf<float> dx(t.x_count());
  std::vector<float> expected(t.x_count());
  t.for_each([&](int b, int g, int c, int k, int r, int s, int p, int q, int h, int w) {
    for (int n = 0; n < kL; ++n)
      expected[t.x(b, g, c, h, w) + n] +=
          dy.data[t.y(b, g, k, p, q) + n] * weight.data[t.parameter(g, c, r, s, k)];
  });
  for (std::size_t i = 0; i < expected.size(); ++i)
    if (masked && mask.data[i] <= 0) expected[i] = 0;
  launch_maps_tf32<T>("backward_data", t.shape(),
                      float_activation(dy.data, t.groups * t.K, t.P, t.Q, t.blocks),
                      float_activation(dx.data, t.groups * t.C, t.H, t.W, t.blocks), weight.data,
                      {nullptr, masked ? mask.data : nullptr, dx.data}, false, nullptr);
  report(differences(dx, expected));
}

// What both arithmetics are checked with.
template <class T, class Element>
void backward_filter_of(const Problem& t,
                        Activation (*activation)(const void*, int64_t, int64_t, int64_t, int64_t),
                        void (*launch)(const char*, const FilterCall&, Stream)) {
  Random random{3};
  const auto dy = random_tensor<Element>(t.y_count(), random),
             x = random_tensor<Element>(t.x_count(), random);
  const std::size_t count = t.parameters(), biases = round_up(count, 4);
  const std::size_t filters = std::size_t(t.groups) * t.K;
  std::vector<float> expected(biases + filters);  // dweight, and dbias behind it
  t.for_each([&](int b, int g, int c, int k, int r, int s, int p, int q, int h, int w) {
    for (int n = 0; n < kL; ++n)
      expected[t.parameter(g, c, r, s, k)] +=
          to_float(dy.data[t.y(b, g, k, p, q) + n]) * to_float(x.data[t.x(b, g, c, h, w) + n]);
  });
  for (int b = 0; b < t.blocks; ++b)
    for (std::size_t k = 0; k < filters; ++k)
      for (int pixel = 0; pixel < t.P * t.Q; ++pixel)
        for (int n = 0; n < kL; ++n)
          expected[biases + k] +=
              to_float(dy.data[t.y(b, int(k) / t.K, int(k) % t.K, pixel / t.Q, pixel % t.Q) + n]);
  FilterCall call{};
  call.dy = activation(dy.data, t.groups * t.K, t.P, t.Q, t.blocks);
  call.x = activation(x.data, t.groups * t.C, t.H, t.W, t.blocks);
  call.R = t.R, call.S = t.S, call.stride = t.stride, call.groups = t.groups;
  call.pad_top = call.pad_left = t.pad;
  call.part_stride = biases + round_up(filters, 4);
  const int parts = filter_problem<T>("backward_filter", call).parts;
  std::vector<float> found(parts * call.part_stride, NAN);
  call.dweight = found.data(), call.dbias = found.data() + biases;
  launch("backward_filter", call, nullptr);
  int wrong = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (i >= count && i < biases) continue;  // between the two
    float sum = 0;
    for (int part = 0; part < parts; ++part) sum += found[part * call.part_stride + i];
    wrong += !(sum == expected[i]);
  }
  report(wrong);
}

template <class T>
void backward_filter(const Problem& t) {
  backward_filter_of<T, bf16>(t, image_activation, launch_filter<T>);
}

template <class T>
void backward_filter_tf32(const Problem& t) {
  backward_filter_of<T, float>(t, float_activation, launch_filter_tf32<T>);
}

// One step of a linear layer's weights; its numbers keep everything exact.
template <class T>
void linear_update(const Problem& t) {
  Random random{4};
  const Tensor dy = random_tensor(t.y_count(), random), x = random_tensor(t.x_count(), random);
  const std::size_t count = std::size_t(t.C) * t.K;
  std::vector<float> weight(count), velocity(count), gradient(count);
  for (float& w : weight) w = static_cast<float>(random.next());
  for (float& v : velocity) v = static_cast<float>(random.next());
  t.for_each([&](int b, int g, int c, int k, int, int, int p, int q, int h, int w) {
    for (int n = 0; n < kL; ++n)
      gradient[std::size_t(c) * t.K + k] +=
          to_float(dy.data[t.y(b, g, k, p, q) + n]) * to_float(x.data[t.x(b, g, c, h, w) + n]);
  });
  std::vector<float> new_weight(count);
  for (std::size_t i = 0; i < count; ++i)
    new_weight[i] = weight[i] + (velocity[i] * 0.5f - gradient[i] * 0.25f);
  Control control{0, 0.5f, 0.5f, 1.0f, 0, 0, {}};
  const WeightUpdate update{weight.data(),       velocity.data(), nullptr,
                            {t.K, t.filters8()}, &control,        {0.5f, 0.0f, 1.0f}};
  FilterCall call{};
  call.dy = image_activation(dy.data, t.K, t.P, t.Q, t.blocks);
  call.x = image_activation(x.data, t.C, t.H, t.W, t.blocks);
  call.R = call.S = call.stride = call.groups = 1, call.whole = true;
  launch_filter_update<T>("linear_update", call, update, nullptr);
  int wrong = 0;
  for (std::size_t i = 0; i < count; ++i) wrong += weight[i] != new_weight[i];
  report(wrong);
}

//                       blocks groups C   H  W  K   R  S  P  Q  stride pad
constexpr Problem kPadded{2, 2, 32, 4, 5, 72, 3, 3, 4, 5, 1, 1};
constexpr Problem kStrided{1, 1, 20, 7, 9, 40, 3, 3, 3, 4, 2, 0};

constexpr Problem kWide{1, 1, 16, 3, 13, 64, 3, 3, 3, 13, 1, 1};
constexpr Problem kFiveTaps{1, 1, 32, 5, 14, 16, 5, 5, 5, 14, 1, 2};
constexpr Problem kFeatures{1, 1, 130, 1, 3, 72,
                            1, 1, 1,   3, 1, 0};  // 3 blocks of images are the columns

constexpr Problem kManyFeatures{1, 1, 600, 1, 3, 72, 1, 1, 1, 3, 1, 0};
constexpr Problem kFewFeatures{1, 1, 72, 1, 3, 130, 1, 1, 1, 3, 1, 0};

constexpr Problem kWideTf32{1, 2, 32, 3, 13, 64, 3, 3, 3, 13, 1, 1};
constexpr Problem kFiveTapsTf32{1, 1, 20, 5, 14, 36, 5, 5, 5, 14, 1, 2};
constexpr Problem kPaddedTf32{2, 1, 40, 4, 5, 32, 3, 3, 4, 5, 1, 1};

template <int kMaps, int kPixels, int kDepth = 16>
using Forward = MapsTile<kMaps, kPixels, kDepth, true>;
template <int kMaps, int kPixels, int kDepth = 32>
using Backward = MapsTile<kMaps, kPixels, kDepth, false>;

// In pairs where there are two blocks of images, or maps for two tiles of a linear layer.
const std::map<std::string, std::function<void()>> kScenarios{
    {"linear", [] { forward<Forward<64, 2, 64>, SharedStrip>(kFeatures, 1); }},
    {"linear-pairs", [] { forward<Forward<64, 4, 64>, SharedStrip>(kFeatures, 1); }},
    {"linear-update", [] { linear_update<FilterTile<2, 1, 128>>(kManyFeatures); }},
    {"linear-backward", [] { backward_data<Backward<64, 4, 64>, SharedStrip>(kFeatures); }},
    {"linear-backward-pairs",
     [] { backward_data<Backward<64, 4, 64>, SharedStrip>(kFewFeatures, true); }},
    {"linear-backward-80", [] { backward_data<Backward<80, 4, 64>, SharedStrip>(kFeatures); }},
    {"linear-backward-32", [] { backward_data<Backward<32, 4, 64>, SharedStrip>(kFewFeatures); }},
    {"forward-wide", [] { forward<Forward<64, 4>, SharedWeights>(kWide, 1); }},
    {"backward-data-wide", [] { backward_data<Backward<48, 3>, SharedWeights>(kFiveTaps); }},
    {"backward-filter-wide", [] { backward_filter<FilterTile<3, 3, 16>>(kWide); }},
    {"forward", [] { forward<Forward<64, 4>, SharedNothing>(kPadded, 1); }},
    {"forward-pairs", [] { forward<Forward<64, 4>, SharedWeights>(kPadded, 1); }},
    {"forward-pairs-wide", [] { forward<Forward<96, 4>, SharedWeights>(kPadded, 1); }},
    {"forward-strided", [] { forward<Forward<64, 4>, SharedWeights>(kStrided, 1); }},
    {"forward-parts", [] { forward<Forward<64, 4>, SharedWeights>(kPadded, 2); }},
    {"forward-odd", [] { forward<Forward<64, 3>, SharedNothing>(kPadded, 1); }},
    {"backward-data", [] { backward_data<Backward<48, 4>, SharedNothing>(kPadded); }},
    {"backward-data-pairs", [] { backward_data<Backward<48, 4>, SharedWeights>(kPadded); }},
    {"backward-data-masked", [] { backward_data<Backward<48, 3>, SharedNothing>(kPadded, true); }},
    {"backward-data-pairs-masked",
     [] { backward_data<Backward<48, 3>, SharedWeights>(kPadded, true); }},
    {"backward-filter", [] { backward_filter<FilterTile<2, 3, 16>>(kPadded); }},
    {"backward-filter-strided", [] { backward_filter<FilterTile<2, 3, 16>>(kStrided); }},
    {"backward-filter-window", [] { backward_filter<WindowTile<3, 3, 16, 96>>(kPadded); }},
    {"forward-tf32", [] { forward_tf32<MapsTileTf32<64, 4, 2, 3, true>>(kWideTf32); }},
    {"forward-tf32-three", [] { forward_tf32<MapsTileTf32<32, 3, 3, 3, true>>(kPaddedTf32); }},
    {"backward-data-tf32",
     [] { backward_data_tf32<MapsTileTf32<48, 8, 2, 5, false>>(kFiveTapsTf32); }},
    {"backward-data-tf32-masked",
     [] { backward_data_tf32<MapsTileTf32<32, 3, 3, 3, false>>(kWideTf32, true); }},
    {"backward-filter-tf32", [] { backward_filter_tf32<FilterTileTf32<2, 3, 16>>(kPadded); }},
    {"backward-filter-tf32-wide",
     [] { backward_filter_tf32<FilterTileTf32<3, 3, 16>>(kWideTf32); }},
};

}  // namespace
}  // namespace convnet

int main(int count, char** arguments) {
  const auto scenario = convnet::kScenarios.find(count > 1 ? arguments[1] : "");
  if (scenario == convnet::kScenarios.end()) {
    for (const auto& [name, run] : convnet::kScenarios) std::puts(name.c_str());
    return 2;
  }
  convnet::emu::seed_order(count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1);
  try {
    scenario->second();
  } catch (const std::exception& error) {
    std::printf("error: %s\n", error.what());
  }
}
