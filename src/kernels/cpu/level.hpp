// Loops that the compiler turns into vector instructions, for whatever the processor has.
//
// A loop is a lambda that is compiled for each level and run at the one that fits. No level contracts a product and a sum
// into one operation, so that all give the same bits. Vectors of the compiler's own (vector_size) are of no use here: they
// would be taken apart for the lowest level before the lambda gets to its own.
#pragma once
#include <cstdint>

namespace convnet::cpu {

#define CONVNET_INLINE __attribute__((always_inline))

enum class Level { base, avx2, avx512 };

// The best that the processor has, or less where set_level() says so.
Level level();

// Chooses it: 0, 1 or 2, where there is one so high; -1: the best again.
void set_level(int number);

// What functions with vectors of their own are compiled for, at the upper two levels, where products are fused with sums.
#define CONVNET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define CONVNET_AVX2 __attribute__((target("avx2,fma")))

// Runs a lambda at the processor's level. It, and what it calls, must be CONVNET_INLINE.
#if defined(__x86_64__)
template <class Loop>
__attribute__((noinline, target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))) void
at_avx512(const Loop& loop) {
  loop();
}

template <class Loop>
__attribute__((noinline, target("avx2"))) void at_avx2(const Loop& loop) {
  loop();
}

template <class Loop>
void vectorised(const Loop& loop) {
  if (level() == Level::avx512)
    at_avx512(loop);
  else if (level() == Level::avx2)
    at_avx2(loop);
  else
    loop();
}
#else
template <class Loop>
void vectorised(const Loop& loop) {
  loop();
}
#endif

}  // namespace convnet::cpu
