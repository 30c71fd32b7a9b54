// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/kernel_errors.h"

#include <utility>

namespace vllm_metal::cpu {

namespace {

thread_local std::shared_ptr<KernelErrors> current;

}  // namespace

void KernelErrors::note(std::exception_ptr error) {
  const std::lock_guard lock(mutex_);
  if (!first_) first_ = std::move(error);
}

void KernelErrors::rethrow() const {
  const std::lock_guard lock(mutex_);
  if (first_) std::rethrow_exception(first_);
}

NoteKernelErrors::NoteKernelErrors(std::shared_ptr<KernelErrors> errors)
    : before_(std::exchange(current, std::move(errors))) {}

NoteKernelErrors::~NoteKernelErrors() { current = std::move(before_); }

const std::shared_ptr<KernelErrors>& current_kernel_errors() { return current; }

}  // namespace vllm_metal::cpu
