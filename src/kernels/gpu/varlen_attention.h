// SPDX-License-Identifier: Apache-2.0
// The GPU kernels of kernels/varlen_attention.h, which checks the arguments; head sizes are those
// of has_attention_kernel.
#pragma once

#include "kernels/attention_options.h"
#include "kernels/kv_view.h"

namespace vllm_metal::gpu {

// Whether MLX's own attention is the faster one for this batch: on CUDA for 16-bit prefills without
// options, for which it has tensor cores and our kernel has not.
bool fallback_is_faster(const mx::array& queries, const BatchLayout& layout,
                        const AttentionOptions& options);

mx::array varlen_attention(const mx::array& queries, const KVView& view,
                           const AttentionOptions& options);

}  // namespace vllm_metal::gpu
