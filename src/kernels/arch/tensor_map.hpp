// What tensor copies are described by, and the limits of the hardware, for both machines. Plain C++.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "../check.hpp"
#include "../shapes.hpp"

namespace convnet {

enum class Element { bf16, float32 };  // of tensors that are copied

// How 16-byte chunks are permuted in shared memory so that rows and columns can be read without bank conflicts: within
// every span of this many bytes, by three (two, one) bits of the row that it lies in.
enum class Swizzle { none, bytes32, bytes64, bytes128 };

inline constexpr int kTensorRank = 5;

constexpr int bytes_of(Element element) { return element == Element::bf16 ? 2 : 4; }

// The bytes of a span; 16, one chunk, without a swizzle.
constexpr int span_of(Swizzle swizzle) { return 16 << static_cast<int>(swizzle); }

// After so many bytes the permutation repeats; what is swizzled must begin at such an address.
constexpr int swizzle_period(Swizzle swizzle) {
  return swizzle == Swizzle::none ? 128 : 8 * span_of(swizzle);
}

// A tensor map in words, for error texts: "bf16 [64, 96, 55, 55, 2], strides [128, ...] bytes, ...".
inline std::string describe_tensor_map(Element element,
                                       const void* address,
                                       const int64_t (&sizes)[kTensorRank],
                                       const int64_t (&byte_strides)[kTensorRank - 1],
                                       const int (&box)[kTensorRank],
                                       Swizzle swizzle) {
  const auto list = [](const auto& values) {
    std::string text;
    for (const auto value : values) text += message(text.empty() ? "[" : ", ", value);
    return text + "]";
  };
  return message(element == Element::bf16 ? "bf16 " : "float32 ", list(sizes), " at ", address,
                 ", strides ", list(byte_strides), " bytes, box ", list(box), ", swizzle ",
                 swizzle == Swizzle::none ? 0 : span_of(swizzle), " bytes");
}

// Throws std::invalid_argument unless tensor_map (arch.cuh) can be called with these arguments.
inline void check_tensor_map(const char* what,
                             Element element,
                             const void* address,
                             const int64_t (&sizes)[kTensorRank],
                             const int64_t (&byte_strides)[kTensorRank - 1],
                             const int (&box)[kTensorRank],
                             Swizzle swizzle) {
  require(address != nullptr && reinterpret_cast<uintptr_t>(address) % 16 == 0, what,
          ": a tensor that is copied in boxes must begin at a multiple of 16 bytes, got ", address,
          "; offset views by multiples of 8 bf16 or 4 float32 values");
  for (int d = 0; d < kTensorRank; ++d) {
    require(sizes[d] >= 1 && sizes[d] <= int64_t{1} << 32, what, ": size ", d,
            " of the tensor must be 1 to 2^32, got ", sizes[d]);
    require(box[d] >= 1 && box[d] <= 256, what, ": size ", d, " of the box must be 1 to 256, got ",
            box[d], "; copy several boxes");
  }
  for (int d = 1; d < kTensorRank; ++d)
    require(byte_strides[d - 1] % 16 == 0 && byte_strides[d - 1] >= 16 &&
                byte_strides[d - 1] < int64_t{1} << 40,
            what, ": the stride of dimension ", d,
            " must be a multiple of 16 bytes below 2^40, got ", byte_strides[d - 1],
            "; pad rows, and give dimensions of size 1 any such stride");
  const int row = box[0] * bytes_of(element);
  require(row % 16 == 0, what, ": the rows of a box must be multiples of 16 bytes, got ", box[0],
          " elements = ", row, " bytes; widen the box, what lies outside of the tensor is zero");
  require(swizzle == Swizzle::none || row == span_of(swizzle), what,
          ": the rows of a swizzled box must be as long as the swizzle's span, got ", box[0],
          " elements = ", row, " bytes, span ", span_of(swizzle), "; copy several boxes");
}

}  // namespace convnet
