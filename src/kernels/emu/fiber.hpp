// Stacks that code can run on and be left on: the emulator gives one to every CUDA thread that has to wait.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define CONVNET_EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CONVNET_EMU_ASAN 1
#endif
#endif
#ifndef CONVNET_EMU_ASAN
#define CONVNET_EMU_ASAN 0
#endif

#if (!defined(__x86_64__) && !defined(__aarch64__)) || !defined(__ELF__)
#define CONVNET_EMU_UCONTEXT 1
#endif
#ifdef CONVNET_EMU_UCONTEXT
#include <ucontext.h>
#endif

namespace convnet::emu {

// A point of execution with its own stack. While there is something on the stack it belongs to one OS thread: compilers may
// keep the address of a thread_local variable across a call, and would use that of the first OS thread on the second.
class Fiber {
 public:
  // Whatever runs now: an OS thread's own stack.
  Fiber() = default;
  // A new stack. The first switch to it calls entry(), which never returns.
  Fiber(int number, void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Forgets what is on the stack, which must not be running; the next switch calls entry() again, on any OS thread.
  void restart();

  // Leaves `from` (which must be running) and goes on where `to` was left. Returns when something switches back.
  static void switch_stacks(Fiber& from, Fiber& to);

  // As switch_stacks, but nothing will switch back before a restart.
  [[noreturn]] static void leave_for_ever(Fiber& from, Fiber& to);

 private:
  friend struct FiberEntry;
  void jump(Fiber& to);
  void arrived();

  void* stack_pointer_ = nullptr;  // where the registers of a fiber that does not run lie
  void* top_ = nullptr;            // where its stack begins, growing downwards
  void* memory_ = nullptr;         // guard page and stack, from mmap
  std::size_t memory_bytes_ = 0;
  void (*entry_)() = nullptr;
  // The bounds as AddressSanitizer has to know them, and what it keeps about a stack that does not run.
  const void* bottom_ = nullptr;
  std::size_t bytes_ = 0;
  [[maybe_unused]] void* fake_stack_ = nullptr;
#ifdef CONVNET_EMU_UCONTEXT
  ucontext_t context_;
#endif
};

}  // namespace convnet::emu
