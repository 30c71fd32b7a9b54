// SPDX-License-Identifier: Apache-2.0
// Which kernels the device's compiler takes, found out before an op is built with them: thrown by
// an eval, what the compiler says would end the step.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "common/mlx.h"
#include "kernels/gpu/kernel_launch.h"

namespace vllm_metal::gpu {

// Remembers what compiled. Thread-safe.
class KernelGuard {
 public:
  using Compile = std::function<void(const KernelUse&)>;  // throws what is wrong with a kernel

  explicit KernelGuard(Compile compile) : compile_(std::move(compile)) {}

  // Whether caches of this dtype and head size can be left to our kernels: all of them or none,
  // since MLX does not order what writes a cache in place after its own ops that read it. The first
  // call compiles them; a kernel that does not compile is warned of once.
  bool allows(mx::Dtype dtype, int head_dim);
  // Whether one that has nothing to do with caches can be used.
  bool allows(const KernelUse& kernel);

 private:
  bool compiles(const KernelUse& kernel);

  Compile compile_;
  std::mutex mutex_;
  std::map<std::pair<mx::Dtype::Val, int>, bool> caches_;
  std::map<std::string, bool> kernels_;  // by expression
};

// The same of this process and its device. CUDA's kernels are not tried beforehand: their compiler
// comes with MLX.
bool kernels_allowed(mx::Dtype dtype, int head_dim);
bool kernel_allowed(const KernelUse& kernel);

}  // namespace vllm_metal::gpu
