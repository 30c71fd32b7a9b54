// SPDX-License-Identifier: Apache-2.0
// The GPU kernels of kernels/varlen_attention.h, which checks the arguments; head sizes are those
// of has_attention_kernel.
#pragma once

#include "kernels/attention_options.h"
#include "kernels/kv_view.h"

namespace vllm_metal::gpu {

mx::array varlen_attention(const mx::array& queries, const KVView& view,
                           const AttentionOptions& options);

}  // namespace vllm_metal::gpu
