// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu/kernel_guard.h"

#include <algorithm>
#include <exception>

#include "common/log.h"
#include "common/text.h"
#include "kernels/gpu/attention_plan.h"
#include "kernels/gpu/cache_kernels.h"
#include "kernels/gpu/device.h"

namespace vllm_metal::gpu {

bool KernelGuard::compiles(const KernelUse& kernel) {
  const std::string expression = kernel.name.expression();
  const auto [known, is_new] = kernels_.try_emplace(expression, false);
  if (!is_new) return known->second;
  try {
    compile_(kernel);
    known->second = true;
  } catch (const std::exception& error) {
    log(LogLevel::kWarning, text("The GPU kernel ", expression, " cannot be used on this device, ",
                                 "MLX's own ops take its place and are slower: ", error.what()));
  }
  return known->second;
}

bool KernelGuard::allows(mx::Dtype dtype, int head_dim) {
  const std::lock_guard lock(mutex_);
  const auto [known, is_new] = caches_.try_emplace({dtype.val(), head_dim}, false);
  if (is_new && has_attention_kernel(head_dim)) {
    known->second = std::ranges::all_of(cache_kernels(dtype, head_dim),
                                        [&](const KernelUse& kernel) { return compiles(kernel); });
  }
  return known->second;
}

bool KernelGuard::allows(const KernelUse& kernel) {
  const std::lock_guard lock(mutex_);
  return compiles(kernel);
}

namespace {

KernelGuard& guard_of_process() {
  static auto* guard = new KernelGuard(
      [](const KernelUse& kernel) { compile(kernel.name, kernel.threads_per_group); });
  return *guard;
}

}  // namespace

bool kernels_allowed(mx::Dtype dtype, int head_dim) {
  return kernel_target() == KernelTarget::kCuda || guard_of_process().allows(dtype, head_dim);
}

bool kernel_allowed(const KernelUse& kernel) {
  return kernel_target() == KernelTarget::kCuda || guard_of_process().allows(kernel);
}

}  // namespace vllm_metal::gpu
