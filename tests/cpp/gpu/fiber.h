// SPDX-License-Identifier: Apache-2.0
// Stacks between which one thread jumps.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <memory>

#include "gpu/fiber_sanitizers.h"

namespace gpu_harness {

// One stack. The thread's own stack is a Fiber too: one without an entry, which is running.
class Fiber {
 public:
  Fiber() = default;
  // Calls entry() when it is first switched to; entry never returns, and calls entered() first.
  explicit Fiber(void (*entry)())
      : stack_(new char[kStackSize]), sanitizers_(stack_.get(), kStackSize), started_(false) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = kStackSize;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void entered() { sanitizers_.arrive(); }

  // Leaves this fiber, which is running, for `next`; returns when something switches back.
  void switch_to(Fiber& next) {
    sanitizers_.leave_for(next.sanitizers_);
    if (FiberSanitizers::kWatching)
      swapcontext(&context_, &next.context_);
    else
      jump_to(next);
    sanitizers_.arrive();
  }

 private:
  // swapcontext asks the kernel for the signal mask each time; these do not.
  void jump_to(Fiber& next) {
    if (_setjmp(jump_) != 0) return;
    if (next.started_) _longjmp(next.jump_, 1);
    next.started_ = true;
    setcontext(&next.context_);
  }

  static constexpr size_t kStackSize = 256 << 10;
  std::unique_ptr<char[]> stack_;
  FiberSanitizers sanitizers_;
  ucontext_t context_{};
  jmp_buf jump_{};
  bool started_ = true;
};

}  // namespace gpu_harness
