// What the ops on the CPU share: a loop over tasks on several threads, scratch memory, and products by BLAS.
#pragma once
#include <cstdint>
#include <functional>

#include "../check.hpp"
#include "../shapes.hpp"

namespace convnet::cpu {

void fp32_only(Precision precision);

// ---- threads

// How many a loop uses: as many as BLAS may (OPENBLAS_NUM_THREADS, threadpoolctl), else one per core.
int threads();

// Calls task(0) ... task(count - 1), each once, in any order, on several threads; one such loop runs at a time, and BLAS
// is limited to one thread per call meanwhile. Results depend on the tasks alone, if these write to different memory.
// The first exception is thrown here, after the rest has been called off. Tasks must not call it.
void in_parallel(int64_t count, const std::function<void(int64_t)>& task);

// For plain loops over `count` values: task(first, last) on pieces of about `piece`.
void in_pieces(int64_t count, int64_t piece, const std::function<void(int64_t, int64_t)>& task);

constexpr int64_t kTasks =
    8;  // pieces of a sum, and the least number of pieces of everything large
constexpr int64_t kPiece =
    1 << 15;  // values per task of an op on every value alone: they stay in the cache

// ---- memory

// A thread has one buffer of each.
enum class Scratch {
  columns,
  pixels,
  shared,
  sums,
  bias_sums,
  normalised,
  ring,
  gradient,
  kept,
  packed,
  places,
  count
};

// Uninitialised memory of this thread for `count` floats, valid until the next call for the same buffer.
float* scratch(Scratch buffer, int64_t count);

inline int32_t* integers(int64_t count) {
  return reinterpret_cast<int32_t*>(scratch(Scratch::places, count));
}

// Bytes that all threads hold.
int64_t scratch_bytes();

// While on, scratch memory is NaN whenever it is asked for: what is read before it is written shows.
void poison_scratch(bool on);

// ---- products

// C (M x N) = A (M x K) B (K x N), plus C where `accumulate`. Matrices lie in rows of ld values; a transposed one lies as
// its transpose. By BLAS on one thread, or where NumPy has none that is known, by a loop of our own.
struct Matrix {
  const float* values;
  int64_t ld;
  bool transposed = false;
};

void product(int64_t M,
             int64_t N,
             int64_t K,
             Matrix A,
             Matrix B,
             float* C,
             int64_t ldc,
             bool accumulate = false);

// Where BLAS is: addresses of cblas_sgemm and of the functions that get and set its number of threads, and whether its
// integers have 64 bits. 0: no BLAS.
bool has_blas();
void use_blas(uintptr_t sgemm, uintptr_t get_threads, uintptr_t set_threads, bool wide);

// ---- cuts, for tests

// Unfolded input per product, in bytes, and a quarter of what is transformed; 0: what was measured to be good.
void set_tile_bytes(int64_t bytes);
int64_t tile_bytes();

}  // namespace convnet::cpu
