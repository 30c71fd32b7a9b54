// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu/cache_kernels.h"

#include "common/text.h"
#include "kernels/gpu/attention_plan.h"
#include "kernels/gpu/device.h"

namespace vllm_metal::gpu {

KernelUse write_kernel(mx::Dtype dtype) {
  return {{"kv_write", element_name(dtype)}, kWriteThreads};
}

KernelUse rotary_kernel(mx::Dtype dtype) {
  return {{"rotary_kv_write", element_name(dtype)}, kWriteThreads};
}

KernelUse copy_kernel(bool wide) {
  return {{"copy_blocks", wide ? "uint4" : "ushort"}, kCopyThreads};
}

KernelUse prefill_kernel(mx::Dtype dtype, int head_dim) {
  const bool matrix = kernel_target() == KernelTarget::kMetal;
  return {{"attention_prefill",
           text(element_name(dtype), ", ", head_dim, matrix ? ", true" : ", false")},
          kPrefillThreads};
}

KernelUse decode_kernel(mx::Dtype dtype, int head_dim, int heads) {
  return {{"attention_decode", text(element_name(dtype), ", ", head_dim, ", ", heads)},
          kDecodeThreads};
}

KernelUse merge_kernel(mx::Dtype dtype, int head_dim) {
  return {{"attention_merge", text(element_name(dtype), ", ", head_dim)}, kMergeThreads};
}

std::vector<KernelUse> cache_kernels(mx::Dtype dtype, int head_dim) {
  std::vector<KernelUse> kernels = {write_kernel(dtype),
                                    rotary_kernel(dtype),
                                    copy_kernel(true),
                                    copy_kernel(false),
                                    prefill_kernel(dtype, head_dim),
                                    merge_kernel(dtype, head_dim)};
  constexpr int kMaxHeads = 1 << 20;  // of a group: decode_heads has an end of its own
  for (int heads = 1; heads <= decode_heads(kMaxHeads, head_dim); heads *= 2)
    kernels.push_back(decode_kernel(dtype, head_dim, heads));
  return kernels;
}

}  // namespace vllm_metal::gpu
