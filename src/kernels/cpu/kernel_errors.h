// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <memory>
#include <mutex>

namespace vllm_metal::cpu {

// What the first kernel of a step that failed threw. MLX keeps a stream's errors, too, but of all
// steps together: with two under way it would tell the later one of the earlier one's.
class KernelErrors {
 public:
  void note(std::exception_ptr error);
  void rethrow() const;  // if there is one

 private:
  mutable std::mutex mutex_;
  std::exception_ptr first_;
};

// While it lives, kernels of graphs that the calling thread evaluates note theirs in `errors`.
class NoteKernelErrors {
 public:
  explicit NoteKernelErrors(std::shared_ptr<KernelErrors> errors);
  ~NoteKernelErrors();
  NoteKernelErrors(const NoteKernelErrors&) = delete;
  NoteKernelErrors& operator=(const NoteKernelErrors&) = delete;

 private:
  std::shared_ptr<KernelErrors> before_;
};

// Null: nobody notes them, and they are left to MLX.
const std::shared_ptr<KernelErrors>& current_kernel_errors();

}  // namespace vllm_metal::cpu
