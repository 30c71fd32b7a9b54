// SPDX-License-Identifier: Apache-2.0
// The kernels of the cache by name: what ops launch, and what is compiled before they do.
#pragma once

#include <vector>

#include "kernels/gpu/kernel_launch.h"

namespace vllm_metal::gpu {

KernelUse write_kernel(mx::Dtype dtype);
KernelUse rotary_kernel(mx::Dtype dtype);
KernelUse copy_kernel(bool wide);  // words of 16 bytes, else of 2
KernelUse prefill_kernel(mx::Dtype dtype, int head_dim);
KernelUse decode_kernel(mx::Dtype dtype, int head_dim, int heads);
KernelUse merge_kernel(mx::Dtype dtype, int head_dim);

// All that read or write caches of this dtype and head size (one of has_attention_kernel).
std::vector<KernelUse> cache_kernels(mx::Dtype dtype, int head_dim);

}  // namespace vllm_metal::gpu
