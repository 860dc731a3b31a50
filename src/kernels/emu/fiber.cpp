#include "fiber.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if CONVNET_EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace convnet::emu {
namespace {

// Kernels keep what a GPU holds in registers on the stack: some hundred bytes. Unoptimised code with AddressSanitizer's
// red zones needs far more. Only pages that are touched cost memory.
constexpr std::size_t kStackBytes = CONVNET_EMU_ASAN ? 256 * 1024 : 64 * 1024;

// Who switched last on this OS thread: a fiber that is switched to cannot know it otherwise.
[[gnu::tls_model("initial-exec")]] constinit thread_local Fiber* switched_from = nullptr;
[[gnu::tls_model("initial-exec")]] constinit thread_local Fiber* switched_to = nullptr;

}  // namespace

#ifndef CONVNET_EMU_UCONTEXT

// Saves the registers that a called function must preserve, stores the stack pointer and goes on with another one.
// Everything else is dead across a call, so this is a complete switch; no system call is involved, in contrast to
// swapcontext, which also saves the signal mask. Control words of the floating-point unit are not switched: kernels do
// not change them.
extern "C" void switch_registers(void** save, void* next) asm("convnet_emu_switch_registers");

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl convnet_emu_switch_registers
.hidden convnet_emu_switch_registers
.type convnet_emu_switch_registers, @function
convnet_emu_switch_registers:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size convnet_emu_switch_registers, . - convnet_emu_switch_registers
)");
constexpr int kFrameWords =
    8;  // six registers, the address to go to, and the (absent) caller of that
constexpr int kEntryWord = 6;
#else
asm(R"(
.text
.p2align 4
.globl convnet_emu_switch_registers
.hidden convnet_emu_switch_registers
.type convnet_emu_switch_registers, %function
convnet_emu_switch_registers:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  br x30
.size convnet_emu_switch_registers, . - convnet_emu_switch_registers
)");
constexpr int kFrameWords = 20;
constexpr int kEntryWord = 11;  // x30
#endif
#endif  // CONVNET_EMU_UCONTEXT

struct FiberEntry {
  static void enter() {
    Fiber* self = switched_to;
    self->arrived();
    self->entry_();
    std::abort();  // an entry never returns
  }
};

Fiber::Fiber(int number, void (*entry)()) : entry_(entry) {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  // One page more than a power of two: stacks then differ in the address bits that choose a cache set, as does the
  // offset below. Otherwise the same variable of all threads of a block would fight for the same few cache lines.
  memory_bytes_ = kStackBytes + page;
  memory_ =
      mmap(nullptr, memory_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory_ == MAP_FAILED) throw std::bad_alloc();
  // The guard: a stack that overflows stops the program here.
  if (mprotect(memory_, page, PROT_NONE) != 0) {
    munmap(memory_, memory_bytes_);
    throw std::bad_alloc();
  }
  bottom_ = static_cast<char*>(memory_) + page;
  bytes_ = kStackBytes;
  top_ = static_cast<char*>(memory_) + memory_bytes_ - number * 5 % 32 * 128;
  restart();
}

void Fiber::restart() {
#if CONVNET_EMU_ASAN
  // Red zones of the outermost frames, which were left for ever; those of the kernel were left by returning.
  constexpr std::size_t kOutermost = 16 * 1024;
  __asan_unpoison_memory_region(static_cast<char*>(top_) - kOutermost, kOutermost);
  fake_stack_ = nullptr;
#endif
#ifdef CONVNET_EMU_UCONTEXT
  getcontext(&context_);
  context_.uc_stack.ss_sp = const_cast<void*>(bottom_);
  context_.uc_stack.ss_size =
      static_cast<std::size_t>(static_cast<char*>(top_) - static_cast<const char*>(bottom_));
  context_.uc_link = nullptr;
  makecontext(&context_, FiberEntry::enter, 0);
#else
  void** frame = static_cast<void**>(top_) - kFrameWords;
  for (int i = 0; i < kFrameWords; ++i) frame[i] = nullptr;
  frame[kEntryWord] = reinterpret_cast<void*>(&FiberEntry::enter);
  stack_pointer_ = frame;
#endif
}

Fiber::~Fiber() {
  if (memory_ == nullptr) return;
#if CONVNET_EMU_ASAN
  __asan_unpoison_memory_region(
      bottom_, bytes_);  // or whoever gets these addresses next would find red zones
#endif
  munmap(memory_, memory_bytes_);
}

void Fiber::jump(Fiber& to) {
  switched_from = this;
  switched_to = &to;
#ifdef CONVNET_EMU_UCONTEXT
  swapcontext(&context_, &to.context_);
#else
  switch_registers(&stack_pointer_, to.stack_pointer_);
#endif
}

// The first thing done on a stack that was switched to.
void Fiber::arrived() {
#if CONVNET_EMU_ASAN
  // Tells which stack runs now, and asks for the bounds of the one left: for an OS thread's own stack this is how they
  // become known.
  __sanitizer_finish_switch_fiber(fake_stack_, &switched_from->bottom_, &switched_from->bytes_);
#endif
}

void Fiber::switch_stacks(Fiber& from, Fiber& to) {
#if CONVNET_EMU_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.bytes_);
#endif
  from.jump(to);
  from.arrived();
}

void Fiber::leave_for_ever(Fiber& from, Fiber& to) {
#if CONVNET_EMU_ASAN
  __sanitizer_start_switch_fiber(nullptr, to.bottom_,
                                 to.bytes_);  // nullptr: free what it keeps about `from`
#endif
  from.jump(to);
  std::abort();
}

}  // namespace convnet::emu
