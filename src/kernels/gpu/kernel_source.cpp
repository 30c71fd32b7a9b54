// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu/kernel_source.h"

#include "common/text.h"

namespace vllm_metal::gpu {

std::string kernel_source(KernelTarget target, const KernelName& name) {
  if (target == KernelTarget::kCuda) return text(kCudaPrelude, kKernelText);
  return text(kMetalPrelude, kKernelText, "\nINSTANTIATE_KERNEL(\"", name.identifier(), "\", ",
              name.function, ", ", name.arguments, ")\n");
}

}  // namespace vllm_metal::gpu
