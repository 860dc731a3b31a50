// What shapes must be, so that no loop runs outside of the tensors that they describe. Python has checked more (shapes.py).
#pragma once
#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "../check.hpp"
#include "../shapes.hpp"
#include "work.hpp"

namespace convnet::cpu {

// The lanes, and sizes of tensors. That these are not too large is checked where they come from Python (bindings).
inline void check_sizes(const char* op,
                        int64_t N,
                        int64_t lanes,
                        std::initializer_list<int64_t> sizes) {
  require(lanes >= 1 && N >= lanes && N % lanes == 0, op,
          ": lanes must be at least 1 and N a multiple of them, got N=", N, " lanes=", lanes);
  for (const int64_t size : sizes)
    require(size >= 1, op, ": every size must be at least 1, got ", size,
            "; skip the call for empty tensors");
}

inline void check_groups(const char* op, int64_t C, int64_t K, int64_t groups) {
  require(groups >= 1 && C % groups == 0 && K % groups == 0, op,
          ": groups must divide C and K, got C=", C, " K=", K, " groups=", groups,
          "; choose groups that divide both");
}

inline void check(const char* op, Precision precision, const ConvShape& s) {
  fp32_only(precision);
  check_sizes(op, s.N, s.lanes, {s.C, s.H, s.W, s.K, s.P, s.Q, s.R, s.S});
  require(s.stride >= 1 && s.pad_top >= 0 && s.pad_left >= 0, op,
          ": stride must be at least 1 and padding at least 0, got stride=", s.stride,
          " pad_top=", s.pad_top, " pad_left=", s.pad_left,
          "; crop the image instead of padding less than 0");
  check_groups(op, s.C, s.K, s.groups);
}

inline void check(const char* op, Precision precision, const LinearShape& s) {
  fp32_only(precision);
  check_sizes(op, s.N, s.lanes, {s.C, s.K});
}

inline void check(const char* op, Precision precision, const PoolShape& s) {
  fp32_only(precision);
  check_sizes(op, s.N, s.lanes, {s.C, s.H, s.W, s.P, s.Q});
  require(s.size >= 1 && s.size <= 15 && s.stride >= 1 && s.stride <= 65535, op,
          ": the window must be 1 to 15 pixels wide and the stride 1 to 65535, got size=", s.size,
          " stride=", s.stride);
  require(s.pad_top >= 0 && s.pad_top < s.size && s.pad_left >= 0 && s.pad_left < s.size, op,
          ": padding must be smaller than the window, got pad_top=", s.pad_top,
          " pad_left=", s.pad_left, " size=", s.size);
  require((s.P - 1) * s.stride - s.pad_top < s.H && (s.Q - 1) * s.stride - s.pad_left < s.W, op,
          ": every window must hold a pixel, got ", s.P, "x", s.Q, " windows on a ", s.H, "x", s.W,
          " image; use the P and Q of PoolShape.of");
}

inline void check(const char* op, Precision precision, const LrnShape& s) {
  fp32_only(precision);
  check_sizes(op, s.N, s.lanes, {s.C, s.H, s.W});
  require(s.size >= 1 && s.size <= 16, op, ": size must be 1 to 16 channels, got size=", s.size);
  require(s.groups >= 1 && s.C % s.groups == 0, op,
          ": groups must divide the channels, got C=", s.C, " groups=", s.groups);
}

inline void check(const char* op, Precision precision, const LrnShape& lrn, const PoolShape& pool) {
  check(op, precision, lrn);
  check(op, precision, pool);
  require(lrn.N == pool.N && lrn.C == pool.C && lrn.H == pool.H && lrn.W == pool.W &&
              lrn.lanes == pool.lanes,
          op, ": both shapes must have the same N, C, H, W and lanes, got ", lrn.N, "x", lrn.C, "x",
          lrn.H, "x", lrn.W, " in ", lrn.lanes, " lanes and ", pool.N, "x", pool.C, "x", pool.H,
          "x", pool.W, " in ", pool.lanes, " lanes");
}

inline void check(const char* op, Precision precision, const SpatialNormShape& s) {
  fp32_only(precision);
  check_sizes(op, s.N, s.lanes, {s.C, s.H, s.W});
  require(s.size >= 1 && s.size <= (s.H > s.W ? s.H : s.W), op,
          ": size must be 1 to the larger side of the image, got size=", s.size, " H=", s.H,
          " W=", s.W);
}

inline void check(const char* op, Precision precision, const BlurShape& s) {
  fp32_only(precision);
  check_sizes(op, s.N, s.lanes, {s.C, s.H, s.W});
  require(s.size >= 3 && s.size <= 9 && s.size % 2 == 1, op,
          ": size must be 3, 5, 7 or 9 pixels, got size=", s.size);
  require(s.std > 0.0f && std::isfinite(s.std), op,
          ": std must be a positive number of pixels, got std=", s.std);
}

inline void check(const char* op, Precision precision, const NailbedShape& s) {
  fp32_only(precision);
  check_sizes(op, s.N, s.lanes, {s.C, s.H, s.W});
  require(s.stride >= 1 && s.P >= 1 && s.Q >= 1 && s.top + (s.P - 1) * s.stride < s.H &&
              s.left + (s.Q - 1) * s.stride < s.W,
          op, ": every pixel must lie in the image, got ", s.P, "x", s.Q, " of a ", s.H, "x", s.W,
          " image from (", s.top, ", ", s.left, ") on with stride=", s.stride,
          "; use the numbers of NailbedShape.of");
}

inline void check(const char* op, Precision precision, const DropoutShape& s) {
  fp32_only(precision);
  check_sizes(op, s.N, s.lanes, {s.features});
  require(s.p >= 0.0f && s.p <= 1.0f, op, ": p must lie in 0..1, got p=", s.p);
  require(s.feature_offset >= 0 && s.feature_offset + s.features <= s.features_total, op,
          ": features must lie in the unsplit layer, got features=", s.features, " at offset ",
          s.feature_offset, " of ", s.features_total);
}

inline void check(const char* op, Precision precision, const SoftmaxShape& s) {
  fp32_only(precision);
  check_sizes(op, s.N, s.lanes, {s.K});
  require(s.valid >= 1 && s.valid <= s.N, op, ": valid must be 1 to N, got valid=", s.valid,
          " N=", s.N);
}

inline void check(const char* op, Precision precision, const IngestShape& s) {
  fp32_only(precision);
  check_sizes(op, s.N, s.lanes, {s.H, s.W, s.crop});
  require(s.valid >= 1 && s.valid <= s.N, op, ": valid must be 1 to N, got valid=", s.valid,
          " N=", s.N);
  require(s.crop <= s.H && s.crop <= s.W, op,
          ": crop must fit the stored images, got crop=", s.crop, " of ", s.H, "x", s.W);
  require(s.fold == 1, "ingest: cpu does not fold images, got fold=", s.fold,
          "; use device \"emu\" or \"cuda\"");
}

inline void check(const char* op, Precision precision, const GatherShape& s) {
  fp32_only(precision);
  check_sizes(op, s.N, s.lanes, {s.C, s.H, s.W, s.K});
}

inline void check_count(const char* op, Precision precision, int64_t count) {
  constexpr int64_t kMost = int64_t{1} << 41;  // as many as a grid has threads for
  fp32_only(precision);
  require(count >= 0 && count <= kMost, op, ": count must be 0 to ", kMost, ", got ", count);
}

}  // namespace convnet::cpu
