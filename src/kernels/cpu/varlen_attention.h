// SPDX-License-Identifier: Apache-2.0
// The CPU kernel of kernels/varlen_attention.h, which checks the arguments.
#pragma once

#include "kernels/attention_options.h"
#include "kernels/kv_view.h"

namespace vllm_metal::cpu {

mx::array varlen_attention(const mx::array& queries, const KVView& view,
                           const AttentionOptions& options);

}  // namespace vllm_metal::cpu
