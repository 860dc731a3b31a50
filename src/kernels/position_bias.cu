// A bias for every filter and pixel, and its gradient.
//
// What       y[n,k,p,q] = x[n,k,p,q] + bias[k,p,q]; dbias[k,p,q] = sum over n of dy[n,k,p,q]. (A
//            local layer adds its bias with its sums: local.cu.)
// Tensors    x, y, dy [N/L][K][P][Q][L] by precision, bias and dbias float32 [K][P][Q];
//            in place allowed.
// Work       forward one thread per four images, 256 threads per block; the sums as in
//            tile/image_sums.cuh.
// Shared     none.
// Barriers   none.
// Needs      lanes a multiple of 8, N a multiple of lanes; 16-byte aligned arrays.
// Cost       8 bytes per value of y forward, 4 backward, half of it in bf16: bound by memory.
#include "position_bias.hpp"

#include "arch/arch.cuh"
#include "tile/conv_problem.cuh"
#include "tile/epilogue.cuh"
#include "tile/image_sums.cuh"
#include "tile/quads.cuh"

namespace convnet {
namespace {

template <class T>
__global__ void __launch_bounds__(kQuadThreads) add_position_bias_kernel(
    int64_t count, int64_t rows, int lanes, const T* x, const float* bias, T* y) {
  begin_kernel();
  const int64_t i = map_index();
  if (i < count) store4(y + i, add(load4(x + i), bias[i / lanes % rows]));
}

}  // namespace

void add_position_bias(const ConvShape& shape,
                       Precision precision,
                       const void* x,
                       const float* bias,
                       void* y,
                       Stream stream) {
  const char* op = "add_position_bias";
  check(op, shape);
  const int64_t rows = shape.K * shape.P * shape.Q, count = rows * shape.N;
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    launch(add_position_bias_kernel<T>, map_grid(op, count), Dim3(kQuadThreads), 0, stream, count,
           rows, int(shape.lanes), static_cast<const T*>(x), bias, static_cast<T*>(y));
  });
}

void add_position_bias_backward(
    const ConvShape& shape, Precision precision, const void* dy, float* dbias, Stream stream) {
  const char* op = "add_position_bias_backward";
  check(op, shape);
  with_element(precision, [&](auto element) {
    using T = decltype(element);
    sum_images(op, shape.N, shape.K * shape.P * shape.Q, shape.lanes, static_cast<const T*>(dy),
               dbias, stream);
  });
}

}  // namespace convnet
