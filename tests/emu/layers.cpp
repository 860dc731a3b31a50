// Runs shipped kernels in the emulator, for tools/remove_barriers.py: layers OP [seed]. Prints a hash of everything that the op
// computed and how many of its values are not numbers, or "error: " and what the emulator says.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "conv_backward_filter.hpp"
#include "conv_forward.hpp"
#include "emu/launch.hpp"
#include "gemm.hpp"
#include "ingest.hpp"
#include "ingest_planar.hpp"
#include "lrn_pool_backward.hpp"
#include "lrn_pool_forward.hpp"
#include "pack.hpp"
#include "softmax.hpp"

namespace convnet {
namespace {

// An array as devices give them: at a multiple of 64 bytes, full of 0xff.
template <class T>
struct Array {
  std::size_t bytes;
  std::unique_ptr<T, decltype(&std::free)> memory;

  explicit Array(std::size_t count) : bytes(count * sizeof(T)), memory(nullptr, &std::free) {
    memory.reset(static_cast<T*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
    std::memset(memory.get(), 0xff, bytes);
  }
  operator T*() const { return memory.get(); }
};

// Values in -1..1 that differ everywhere.
Array<float> values(std::size_t count) {
  Array<float> x(count);
  for (std::size_t i = 0; i < count; ++i)
    x[i] = static_cast<float>(i * 7919 % 1009) / 504.0f - 1.0f;
  return x;
}

uint64_t hash = 14695981039346656037u;
int not_numbers = 0;

void take(const Array<float>& x) {
  for (std::size_t i = 0; i < x.bytes / 4; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    hash = (hash ^ bits) * 1099511628211u;
    not_numbers += std::isnan(x[i]);
  }
}

// So large that a row of dy takes several warps to sum.
const ConvShape conv_shape{.N = 8,
                           .C = 6,
                           .H = 12,
                           .W = 11,
                           .K = 20,
                           .R = 3,
                           .S = 3,
                           .P = 12,
                           .Q = 11,
                           .stride = 1,
                           .pad_top = 1,
                           .pad_left = 1,
                           .groups = 1,
                           .lanes = 8};

void conv() {
  const Array<float> y(8 * 20 * 12 * 11);
  conv_forward(conv_shape, Precision::fp32, values(8 * 6 * 12 * 11), values(6 * 3 * 3 * 20),
               values(20), y, true, false, nullptr);
  take(y);
}

void conv_filter() {
  const Array<float> workspace(
      static_cast<std::size_t>(conv_backward_filter_workspace(conv_shape, Precision::fp32)) / 4 +
      1);
  const Array<float> dweight(6 * 3 * 3 * 20), dbias(20);
  const Array<float> dy = values(8 * 20 * 12 * 11), x = values(8 * 6 * 12 * 11);
  conv_backward_filter(conv_shape, Precision::fp32, dy, x, dweight, dbias, workspace, nullptr);
  take(dweight), take(dbias);
}

void linear() {
  const LinearShape shape{.N = 16, .C = 70, .K = 44, .lanes = 16};
  const Array<float> x = values(16 * 70), dy = values(16 * 44), weight = values(70 * 44);
  const Array<float> workspace(
      static_cast<std::size_t>(linear_workspace(shape, Precision::fp32)) / 4 + 1);
  const Array<float> y(16 * 44), dx(16 * 70), dweight(70 * 44), dbias(44);
  linear_forward(shape, Precision::fp32, x, weight, values(44), y, true, {}, nullptr, workspace,
                 false, nullptr);
  linear_backward_data(shape, Precision::fp32, dy, weight, dx, nullptr, workspace, nullptr);
  linear_backward_filter(shape, Precision::fp32, dy, x, dweight, dbias, workspace, nullptr);
  take(y), take(dx), take(dweight), take(dbias);
}

void softmax() {
  const SoftmaxShape shape{.N = 16, .valid = 13, .K = 150, .lanes = 8};
  const Array<float> losses(16), probs(16 * 150), dlogits(16 * 150);
  const Array<int32_t> labels(16), ranks(16);
  const Array<Control> control(1);
  for (int n = 0; n < 16; ++n) labels[n] = n * 11;
  softmax_cross_entropy(shape, Precision::fp32, values(16 * 150), labels, losses, ranks, probs,
                        dlogits, control, nullptr);
  take(losses), take(probs), take(dlogits);
  for (int n = 0; n < 16; ++n) hash = (hash ^ static_cast<uint64_t>(ranks[n])) * 1099511628211u;
}

void normalise_and_pool() {
  const LrnShape lrn{.N = 16,
                     .C = 22,
                     .H = 9,
                     .W = 11,
                     .groups = 2,
                     .lanes = 8,
                     .size = 5,
                     .alpha = 0.5f,
                     .beta = 0.75f,
                     .k = 1.0f};
  const PoolShape pool{.N = 16,
                       .C = 22,
                       .H = 9,
                       .W = 11,
                       .P = 4,
                       .Q = 5,
                       .size = 3,
                       .stride = 2,
                       .pad_top = 0,
                       .pad_left = 0,
                       .lanes = 8};
  const Array<float> p(16 * 22 * 4 * 5);
  lrn_pool_forward(lrn, pool, Precision::fp32, values(16 * 22 * 9 * 11), p, nullptr, nullptr);
  take(p);
}

// Channels of several turns; windows that several threads need.
void normalise_and_pool_back() {
  const LrnShape lrn{.N = 16,
                     .C = 22,
                     .H = 9,
                     .W = 11,
                     .groups = 2,
                     .lanes = 16,
                     .size = 5,
                     .alpha = 0.5f,
                     .beta = 0.75f,
                     .k = 1.0f};
  const PoolShape pool{.N = 16,
                       .C = 22,
                       .H = 9,
                       .W = 11,
                       .P = 4,
                       .Q = 5,
                       .size = 3,
                       .stride = 2,
                       .pad_top = 0,
                       .pad_left = 0,
                       .lanes = 16};
  const Array<uint8_t> argmax(16 * 22 * 4 * 5);
  for (int i = 0; i < 16 * 22 * 4 * 5; ++i) argmax[i] = static_cast<uint8_t>(i * 7919 % 1009 % 9);
  const Array<float> dx(16 * 22 * 9 * 11);
  lrn_pool_backward(lrn, pool, Precision::fp32, values(16 * 22 * 4 * 5), argmax,
                    values(16 * 22 * 9 * 11), dx, false, nullptr);
  take(dx);
}

void ingest_images() {
  const IngestShape shape{.N = 8,
                          .valid = 7,
                          .H = 14,
                          .W = 12,
                          .crop = 10,
                          .lanes = 8,
                          .scale = {0.5f, 0.25f, 2.0f},
                          .fold = 1};
  const Array<uint8_t> images(7 * 14 * 12 * 3);
  for (int i = 0; i < 7 * 14 * 12 * 3; ++i) images[i] = static_cast<uint8_t>(i * 7919 % 251);
  const Array<int32_t> windows(7 * 3);
  for (int n = 0; n < 7; ++n)
    windows[3 * n] = n % 5, windows[3 * n + 1] = n % 3, windows[3 * n + 2] = n % 2;
  const Array<float> y(8 * 3 * 10 * 10);
  ingest(shape, Precision::fp32, images, windows, values(7 * 3), values(3 * 10 * 10), y, nullptr);
  take(y);
}

void ingest_planes() {
  const IngestShape shape{.N = 8,
                          .valid = 7,
                          .H = 13,
                          .W = 12,
                          .crop = 10,
                          .lanes = 8,
                          .scale = {0.5f, 0.25f, 2.0f},
                          .fold = 1};
  const Array<uint8_t> luma(3 * 13 * 12), cb(3 * 7 * 6), cr(3 * 7 * 6);
  for (int i = 0; i < 3 * 13 * 12; ++i) luma[i] = static_cast<uint8_t>(i * 7919 % 251);
  for (int i = 0; i < 3 * 7 * 6; ++i)
    cb[i] = static_cast<uint8_t>(i * 31 % 256), cr[i] = static_cast<uint8_t>(i * 57 % 256);
  const Array<int32_t> index(7), windows(7 * 3);
  for (int n = 0; n < 7; ++n) {
    index[n] = n * 2 % 3;
    windows[3 * n] = n % 4, windows[3 * n + 1] = n % 3, windows[3 * n + 2] = n % 2;
  }
  const Array<float> y(8 * 3 * 10 * 10);
  ingest_planar(shape, Precision::fp32, luma, cb, cr, index, windows, values(7 * 3),
                values(3 * 10 * 10), y, nullptr);
  take(y);
}

void pack_images() {
  const PackShape shape{.N = 8,
                        .valid = 7,
                        .C = 3,
                        .H = 5,
                        .W = 6,
                        .lanes = 8,
                        .fold = 2,
                        .offset = 1,
                        .steps = {90, 30, 6, 1}};
  const Array<float> y(8 * 12 * 3 * 3);
  pack(shape, Precision::fp32, values(1 + 7 * 90), y, nullptr);
  take(y);
}

}  // namespace
}  // namespace convnet

int main(int count, char** arguments) {
  const std::map<std::string, void (*)()> ops{
      {"conv_backward_filter", convnet::conv_filter},
      {"conv_forward", convnet::conv},
      {"gemm", convnet::linear},
      {"ingest", convnet::ingest_images},
      {"ingest_planar", convnet::ingest_planes},
      {"lrn_pool", convnet::normalise_and_pool},
      {"lrn_pool_backward", convnet::normalise_and_pool_back},
      {"pack", convnet::pack_images},
      {"softmax", convnet::softmax}};
  if (count < 2 || !ops.contains(arguments[1])) {
    for (const auto& [name, run] : ops) std::puts(name.c_str());
    return 2;
  }
  if (count > 2) convnet::emu::seed_order(std::strtoull(arguments[2], nullptr, 10));
  try {
    ops.at(arguments[1])();
    std::printf("%016llx, %d not numbers\n", static_cast<unsigned long long>(convnet::hash),
                convnet::not_numbers);
  } catch (const std::exception& error) {
    std::printf("error: %s\n", error.what());
  }
}
