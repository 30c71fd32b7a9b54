// SPDX-License-Identifier: Apache-2.0
// Tells AddressSanitizer and ThreadSanitizer that the thread changes its stack.
#pragma once

#include <cstddef>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GPU_HARNESS_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define GPU_HARNESS_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define GPU_HARNESS_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define GPU_HARNESS_TSAN 1
#endif

#ifdef GPU_HARNESS_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef GPU_HARNESS_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace gpu_harness {

// What the sanitizers know of one stack. The thread's own one learns its bounds when it is left.
class FiberSanitizers {
 public:
#if defined(GPU_HARNESS_ASAN)
  static constexpr bool kWatching = true;
  FiberSanitizers() = default;
  FiberSanitizers(const void* stack, size_t size) : stack_(stack), size_(size) {}

  void leave_for(FiberSanitizers& next) {
    left() = this;
    __sanitizer_start_switch_fiber(&fake_stack_, next.stack_, next.size_);
  }
  void arrive() {
    const void* stack = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(fake_stack_, &stack, &size);
    left()->stack_ = stack;
    left()->size_ = size;
  }

 private:
  static FiberSanitizers*& left() {
    static FiberSanitizers* fiber = nullptr;
    return fiber;
  }
  const void* stack_ = nullptr;
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
#elif defined(GPU_HARNESS_TSAN)
  static constexpr bool kWatching = true;
  FiberSanitizers() : fiber_(__tsan_get_current_fiber()), own_(false) {}
  FiberSanitizers(const void*, size_t) : fiber_(__tsan_create_fiber(0)), own_(true) {}
  FiberSanitizers(const FiberSanitizers&) = delete;
  FiberSanitizers& operator=(const FiberSanitizers&) = delete;
  ~FiberSanitizers() {
    if (own_) __tsan_destroy_fiber(fiber_);
  }
  void leave_for(FiberSanitizers& next) { __tsan_switch_to_fiber(next.fiber_, 0); }
  void arrive() {}

 private:
  void* fiber_;
  bool own_;
#else
  static constexpr bool kWatching = false;
  FiberSanitizers() = default;
  FiberSanitizers(const void*, size_t) {}
  void leave_for(FiberSanitizers&) {}
  void arrive() {}
#endif
};

}  // namespace gpu_harness
