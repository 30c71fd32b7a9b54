// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/kv_view.h"

namespace vllm_metal {

// Causal attention of packed queries over each request's cached keys and values: prefill chunks,
// decodes and mixtures in one node. The queries of request r are its last
// query_starts[r+1] - query_starts[r] tokens; query i of n attends to the first
// context_lens[r] - n + i + 1 cached tokens. Query head h reads key head
// h / (num_heads / num_kv_heads) (grouped-query attention, arXiv:2305.13245).
// Softmax and sums are float32 whatever the dtype; the result has the queries' dtype.
//   queries  [num_tokens, num_heads, head_dim], any strides
//   returns  [num_tokens, num_heads, head_dim]
// Throws std::invalid_argument when shapes or dtypes do not fit the cache.
mx::array varlen_attention(const mx::array& queries, const KVView& view, float scale);

// The same in public MLX ops, one request at a time: for devices without a kernel, and the
// reference in tests.
mx::array varlen_attention_fallback(const mx::array& queries, const KVView& view, float scale);

}  // namespace vllm_metal
