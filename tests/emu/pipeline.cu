// For nvcc: the pipeline, and wgmma with every number of columns.
#include "pipeline.cuh"

#include <utility>

namespace convnet {

template void pipeline<Mistake::none>(const bf16*, const bf16*, const bf16*, int, int, int);

template <int N, bool kTransposeA, bool kTransposeB>
__global__ void __launch_bounds__(128) columns_kernel(float* out, const uint32_t* registers) {
  begin_kernel();
  bf16* shared = &shared_storage<bf16>();
  float sum[N / 2];
  uint32_t a[4];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) sum[i] = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = registers[i * 128 + threadIdx.x];
  hold(sum);
  hold(a);
  wgmma_fence();
  const uint64_t b = operand(shared, 1024, 1024, Swizzle::bytes128);
  wgmma<N, kTransposeA, kTransposeB>(sum, operand(shared, 1024, 1024, Swizzle::bytes32), b);
  wgmma<N, kTransposeB>(sum, a, b);
  wgmma_tf32<N>(sum, a, b);
  wgmma_commit();
  wgmma_wait<0>();
  hold(sum);
  hold(a);
#pragma unroll
  for (int i = 0; i < N / 2; ++i) out[i * 128 + threadIdx.x] = sum[i];
}

template <int... kEights>
void all_columns(std::integer_sequence<int, kEights...>) {
  (launch(columns_kernel<8 * kEights + 8, kEights % 2 == 0, kEights % 4 < 2>, Dim3(1), Dim3(128),
          65536, nullptr, nullptr, nullptr),
   ...);
}

void all_columns() { all_columns(std::make_integer_sequence<int, 32>()); }

}  // namespace convnet
