// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/attention_options.h"
#include "kernels/kv_view.h"

namespace vllm_metal {

// Causal attention of packed queries over each request's cached keys and values: prefill chunks,
// decodes and mixtures in one node. The queries of request r are its last
// query_starts[r+1] - query_starts[r] tokens; query i of n attends to the first
// context_lens[r] - n + i + 1 cached tokens, with a sliding window to the last of those only. Query
// head h reads key head h / (num_heads / num_kv_heads) (grouped-query attention, arXiv:2305.13245).
// Softmax and sums are float32 whatever the dtype; the result has the queries' dtype.
//   queries  [num_tokens, num_heads, head_dim], any strides
//   returns  [num_tokens, num_heads, head_dim]
// Rows of the cache that no query of the step sees are not read. So block_tables may hold anything
// for blocks that lie wholly before the window of a request's first query.
// Throws std::invalid_argument when shapes, dtypes or options do not fit.
mx::array varlen_attention(const mx::array& queries, const KVView& view,
                           const AttentionOptions& options);

// The same in public MLX ops, one request at a time: for devices without a kernel, and the
// reference in tests.
mx::array varlen_attention_fallback(const mx::array& queries, const KVView& view,
                                    const AttentionOptions& options);

}  // namespace vllm_metal
