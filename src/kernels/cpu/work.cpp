#include "work.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "level.hpp"

namespace convnet::cpu {

void fp32_only(Precision precision) {
  require(precision == Precision::fp32, "the CPU computes in \"fp32\" only, got precision \"",
          precision == Precision::tf32 ? "tf32" : "bf16", "\"; use a device \"emu\" or \"cuda\"");
}

// ---- levels

namespace {

Level best_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Level::avx512;
  if (__builtin_cpu_supports("avx2")) return Level::avx2;
#endif
  return Level::base;
}

std::atomic<Level> chosen_level{best_level()};

}  // namespace

Level level() { return chosen_level.load(std::memory_order_relaxed); }

void set_level(int number) {
  const int most = static_cast<int>(best_level());
  require(number >= -1 && number <= most, "set_level: this processor has levels 0 to ", most,
          ", got ", number);
  chosen_level = static_cast<Level>(number < 0 ? most : number);
}

// ---- BLAS

namespace {

enum { kRowMajor = 101, kPlain = 111, kTransposed = 112 };

template <class Int>
using Sgemm = void (*)(
    int, int, int, Int, Int, Int, float, const float*, Int, const float*, Int, float, float*, Int);

struct Blas {
  uintptr_t sgemm = 0;
  int (*get_threads)() = nullptr;
  void (*set_threads)(int) = nullptr;
  bool wide = false;
};

Blas blas;

template <class Int>
void call_blas(
    int64_t M, int64_t N, int64_t K, Matrix A, Matrix B, float* C, int64_t ldc, bool accumulate) {
  reinterpret_cast<Sgemm<Int>>(blas.sgemm)(kRowMajor, A.transposed ? kTransposed : kPlain,
                                           B.transposed ? kTransposed : kPlain, static_cast<Int>(M),
                                           static_cast<Int>(N), static_cast<Int>(K), 1.0f, A.values,
                                           static_cast<Int>(A.ld), B.values, static_cast<Int>(B.ld),
                                           accumulate ? 1.0f : 0.0f, C, static_cast<Int>(ldc));
}

// Rows of C in pieces that stay in the cache, each the sum of rows of B.
void own_product(
    int64_t M, int64_t N, int64_t K, Matrix A, Matrix B, float* C, int64_t ldc, bool accumulate) {
  constexpr int64_t kWidth = 256;
  for (int64_t first = 0; first < N; first += kWidth) {
    const int64_t width = N - first < kWidth ? N - first : kWidth;
    const float* rows = B.values + first;
    int64_t ld = B.ld;
    if (B.transposed) {
      float* const turned = scratch(Scratch::packed, K * width);
      for (int64_t k = 0; k < K; ++k)
        for (int64_t n = 0; n < width; ++n)
          turned[k * width + n] = B.values[(first + n) * B.ld + k];
      rows = turned, ld = width;
    }
    vectorised([&]() CONVNET_INLINE {
      for (int64_t m = 0; m < M; ++m) {
        float* const c = C + m * ldc + first;
        const float* const a = A.values + (A.transposed ? m : m * A.ld);
        const int64_t step = A.transposed ? A.ld : 1;
        if (!accumulate)
          for (int64_t n = 0; n < width; ++n) c[n] = 0.0f;
        for (int64_t k = 0; k < K; ++k) {
          const float factor = a[k * step];
          const float* const b = rows + k * ld;
          for (int64_t n = 0; n < width; ++n) c[n] += factor * b[n];
        }
      }
    });
  }
}

}  // namespace

bool has_blas() { return blas.sgemm != 0; }

void use_blas(uintptr_t sgemm, uintptr_t get_threads, uintptr_t set_threads, bool wide) {
  blas = {sgemm, reinterpret_cast<int (*)()>(get_threads),
          reinterpret_cast<void (*)(int)>(set_threads), wide};
}

void product(
    int64_t M, int64_t N, int64_t K, Matrix A, Matrix B, float* C, int64_t ldc, bool accumulate) {
  if (M == 0 || N == 0) return;
  if (!blas.sgemm)
    own_product(M, N, K, A, B, C, ldc, accumulate);
  else if (blas.wide)
    call_blas<int64_t>(M, N, K, A, B, C, ldc, accumulate);
  else
    call_blas<int32_t>(M, N, K, A, B, C, ldc, accumulate);
}

// ---- threads

namespace {

// Helpers wait for a loop and take tasks of it. Nobody waits for a helper that has taken none: where other programs, or
// the threads of another library that wait awake, keep it from its core, the rest do its share. For some microseconds
// helpers wait awake themselves: the next loop of a small network begins sooner than a sleeping thread does.
class Pool {
 public:
  void run(int64_t count, int helpers, const std::function<void(int64_t)>& task) {
    for (; started_ < helpers; ++started_) std::thread(&Pool::help, this, started_).detach();
    // Closed first: who still looks at the loop before takes nothing of the one that comes.
    ticket_ = loop_ << 32 | kClosed;
    task_ = &task, count_ = static_cast<uint64_t>(count), helpers_ = helpers;
    done_ = 0, failed_ = false, error_ = nullptr;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      loop_ = (loop_ + 1) & 0xffffffffu;
      ticket_ = loop_ << 32;
    }
    if (asleep_) begins_.notify_all();
    take(loop_);
    const auto all_done = [&] { return done_ == count_; };
    if (!awake(all_done)) {
      std::unique_lock<std::mutex> lock(mutex_);
      ends_.wait(lock, all_done);
    }
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static constexpr uint64_t kClosed = 0xffffffffu;

  void help(int number) {
    uint64_t seen = kClosed + 1;  // no loop
    while (true) {
      const auto called = [&] { return ticket_ >> 32 != seen; };
      if (!awake(called)) {
        std::unique_lock<std::mutex> lock(mutex_);
        ++asleep_;
        begins_.wait(lock, called);
        --asleep_;
      }
      seen = ticket_ >> 32;
      if (number < helpers_) take(seen);
    }
  }

  // Tasks of one loop, until there are none. A ticket that is taken keeps the loop from ending before its task has.
  void take(uint64_t loop) {
    while (true) {
      uint64_t ticket = ticket_;
      if (ticket >> 32 != loop || (ticket & kClosed) >= count_) return;
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
      const uint64_t count = count_;
      try {
        if (!failed_) (*task_)(static_cast<int64_t>(ticket & kClosed));
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::current_exception();
        failed_ = true;
      }
      if (++done_ == count) {
        const std::lock_guard<std::mutex> lock(mutex_);
        ends_.notify_one();
      }
    }
  }

  template <class Condition>
  static bool awake(const Condition& condition) {
    for (int i = 0; i < 2000; ++i) {
      if (condition()) return true;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    return false;
  }

  std::mutex mutex_;
  std::condition_variable begins_, ends_;
  std::atomic<uint64_t> ticket_{kClosed};  // number of the loop, and its next task
  std::atomic<uint64_t> count_{0}, done_{0};
  std::atomic<const std::function<void(int64_t)>*> task_{nullptr};
  std::atomic<int> helpers_{0}, asleep_{0};
  std::atomic<bool> failed_{false};
  uint64_t loop_ = 0;
  int started_ = 0;
  std::exception_ptr error_;
};

// Never destroyed: its threads live as long as the process. A forked child has none of them, and begins anew.
Pool* pool = nullptr;
std::mutex* one_loop_at_a_time = nullptr;

void begin_anew() {
  pool = new Pool;
  one_loop_at_a_time = new std::mutex;
}

[[maybe_unused]] const bool begun = [] {
  begin_anew();
  pthread_atfork(nullptr, nullptr, begin_anew);
  return true;
}();

// BLAS with one thread per call, for as long as this lives.
class OneThreadOfBlas {
 public:
  OneThreadOfBlas() : before_(blas.get_threads ? blas.get_threads() : 1) {
    if (before_ != 1) blas.set_threads(1);
  }
  ~OneThreadOfBlas() {
    if (before_ != 1) blas.set_threads(before_);
  }
  OneThreadOfBlas(const OneThreadOfBlas&) = delete;

 private:
  int before_;
};

}  // namespace

int threads() {
  const int allowed =
      blas.get_threads ? blas.get_threads() : static_cast<int>(std::thread::hardware_concurrency());
  return allowed > 0 ? allowed : 1;
}

void in_parallel(int64_t count, const std::function<void(int64_t)>& task) {
  if (count == 0) return;
  const std::lock_guard<std::mutex> lock(*one_loop_at_a_time);
  const int helpers = static_cast<int>(std::min<int64_t>(threads(), count)) - 1;
  const OneThreadOfBlas limited;
  if (helpers < 1)
    for (int64_t index = 0; index < count; ++index) task(index);
  else
    pool->run(count, helpers, task);
}

void in_pieces(int64_t count, int64_t piece, const std::function<void(int64_t, int64_t)>& task) {
  in_parallel((count + piece - 1) / piece,
              [&](int64_t index) { task(index * piece, std::min(count, (index + 1) * piece)); });
}

// ---- memory

namespace {

std::atomic<int64_t> held_bytes{0};
std::atomic<bool> poisoned{false};

struct Buffers {
  struct Buffer {
    float* memory = nullptr;
    int64_t count = 0;
  } buffer[static_cast<int>(Scratch::count)];

  ~Buffers() {
    for (Buffer& one : buffer) {
      std::free(one.memory);
      held_bytes -= one.count * 4;
    }
  }
};

thread_local Buffers buffers;

}  // namespace

float* scratch(Scratch buffer, int64_t count) {
  auto& [memory, held] = buffers.buffer[static_cast<int>(buffer)];
  if (held < count) {
    const int64_t wanted = (count + 15) / 16 * 16;
    std::free(memory);
    held_bytes -= held * 4;
    held = 0;
    memory = static_cast<float*>(std::aligned_alloc(64, static_cast<std::size_t>(wanted) * 4));
    if (!memory) throw std::bad_alloc();
    held = wanted;
    held_bytes += held * 4;
  }
  if (poisoned) std::memset(memory, 0xff, static_cast<std::size_t>(count) * 4);
  return memory;
}

int64_t scratch_bytes() { return held_bytes; }
void poison_scratch(bool on) { poisoned = on; }

// ---- cuts

namespace {
std::atomic<int64_t> tile_bytes_chosen{0};
}

void set_tile_bytes(int64_t bytes) { tile_bytes_chosen = bytes; }
int64_t tile_bytes() { return tile_bytes_chosen ? tile_bytes_chosen.load() : 4 << 20; }

}  // namespace convnet::cpu
