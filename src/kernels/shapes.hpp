// Problem descriptions: what an op computes on, in the letters of the field.
//
//   N images (padded: a multiple of lanes)   C input channels    H W input rows, columns
//   K filters                                R S filter rows, columns    P Q output rows, columns
//   lanes L: images stored side by side; blocks = N / L
//
// Activations lie as [N/L][C][H][W][L], weights as [groups][C/groups][R][S][K/groups].
// The same structs exist in convnet/kernels/shapes.py, which owns the formulas for P and Q: a launcher never derives them again.
#pragma once
#include <cstdint>

struct CUstream_st;  // CUDA's name for what a cudaStream_t points to

namespace convnet {

using Stream = CUstream_st*;  // cudaStream_t on a GPU, unused in the emulator

// What products are made of. Parameters, their gradients and sums are float32 always.
//
//   fp32  float32 activations, IEEE multiply-adds
//   tf32  float32 activations, operands rounded to 10 bits of mantissa on their way into the tensor cores
//   bf16  bfloat16 activations; convolutions and linear layers read a bfloat16 copy of the weights, whose rows (over K)
//         are padded with zeros to a multiple of 8
enum class Precision { fp32, tf32, bf16 };

// The upper half of a float32.
struct bf16 {
  uint16_t bits;
};

struct ConvShape {
  int64_t N, C, H, W;
  int64_t K, R, S;
  int64_t P, Q;
  int64_t stride, pad_top,
      pad_left;  // what lies below and to the right of the image reads as zero, however far
  int64_t groups, lanes;
};

// A convolution that has filters and biases of its own at every output pixel. Its weights lie as
// [P][Q][groups][C/groups][R][S][K/groups], its biases as [K][P][Q].
struct LocalShape : ConvShape {};

struct LinearShape {
  int64_t N, C, K;  // images, input features, output features
  int64_t lanes;
};

struct PoolShape {
  int64_t N, C, H, W;
  int64_t P, Q;
  int64_t size, stride, pad_top,
      pad_left;  // windows, of maxima or of averages, are clipped to the image
  int64_t lanes;
};

struct LrnShape {
  int64_t N, C, H, W;
  int64_t groups;  // the window never crosses a border between groups (towers)
  int64_t lanes;
  int64_t size;
  float alpha, beta, k;  // y = x * (k + alpha * sum)^-beta; alpha is not divided by size
};

struct SpatialNormShape {
  int64_t N, C, H, W;
  int64_t lanes;
  int64_t
      size;  // the window of pixel p of a map: rows and columns [p - size/2, p - size/2 + size), clipped
  float alpha, beta,
      k;  // y = x * (k + alpha * sum)^-beta; alpha is not divided by the pixels of a window
};

struct BlurShape {
  int64_t N, C, H, W;
  int64_t lanes;
  int64_t size;  // taps along each axis: 3, 5, 7 or 9
  float std;     // of the gaussian, in pixels
};

struct NailbedShape {
  int64_t N, C, H, W;
  int64_t P, Q;
  int64_t stride, top, left;  // y(p, q) is pixel (top + p * stride, left + q * stride)
  int64_t lanes;
};

struct DropoutShape {
  int64_t N, features, lanes;
  int64_t feature_offset, features_total;  // where these features lie in the unsplit layer
  float p;                                 // probability of dropping
  uint64_t seed;
  uint32_t layer;
};

struct SoftmaxShape {
  int64_t N,
      valid;  // only the first `valid` of N images exist; the others get loss 0, rank 0, gradient 0
  int64_t K, lanes;  // classes
};

struct IngestShape {
  int64_t N, valid;     // as in SoftmaxShape; lanes beyond `valid` are written as zero
  int64_t H, W;         // of the stored images
  int64_t crop, lanes;  // the window is crop x crop
  float scale[3];       // of the channels: y = (pixel - mean + noise) * scale
  // s: pixel (i, j) of channel c is written as pixel (i/s, j/s) of channel c*s*s + i%s*s + j%s;
  // 1: every pixel keeps its place
  int64_t fold;
};

// Images, or filters, as others hold them, on their way into lanes. Values of x are counted from its start.
struct PackShape {
  int64_t N, valid;  // as in SoftmaxShape; lanes beyond `valid` are written as zero
  int64_t C, H, W, lanes;
  int64_t fold;      // as in IngestShape; sizes that it does not divide are rounded up
  int64_t offset;    // of the first value
  int64_t steps[4];  // from one n, c, h and w to the next
};

// K channels picked from C.
struct GatherShape {
  int64_t N, C, H, W, K, lanes;
};

}  // namespace convnet
