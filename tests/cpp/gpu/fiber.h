// SPDX-License-Identifier: Apache-2.0
// Stacks between which one thread jumps.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <memory>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define GPU_HARNESS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define GPU_HARNESS_SANITIZED 1
#endif
#endif

namespace gpu_harness {

// One stack. The thread's own stack is a Fiber too: one without an entry, which is running.
class Fiber {
 public:
  Fiber() = default;
  // Calls entry() when it is first switched to; entry never returns.
  explicit Fiber(void (*entry)()) : stack_(new char[kStackSize]), started_(false) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = kStackSize;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves this fiber, which is running, for `next`; returns when something switches back.
  void switch_to(Fiber& next) {
#ifdef GPU_HARNESS_SANITIZED
    swapcontext(&context_, &next.context_);
#else
    // swapcontext asks the kernel for the signal mask each time; these do not.
    if (_setjmp(jump_) != 0) return;
    if (next.started_) _longjmp(next.jump_, 1);
    next.started_ = true;
    setcontext(&next.context_);
#endif
  }

 private:
  static constexpr size_t kStackSize = 256 << 10;
  std::unique_ptr<char[]> stack_;
  ucontext_t context_{};
  jmp_buf jump_{};
  bool started_ = true;
};

}  // namespace gpu_harness
