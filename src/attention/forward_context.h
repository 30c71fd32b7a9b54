// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "cache/kv_cache.h"

namespace vllm_metal {

// Tokens of a step whose hidden states are wanted, where not all are: the last ones of requests.
struct OutputTokens {
  mx::array rows;      // int32 [num_outputs] among the tokens of the step
  BatchLayout layout;  // of them alone
};

// What a forward pass knows of its step besides the token ids: where the tokens stand in their
// requests and where their keys and values go. Passed explicitly to every layer.
struct ForwardContext {
  const BatchLayout& layout;
  const std::vector<int32_t>& positions;     // [num_tokens] position of each token in its request
  const std::vector<int32_t>& request_lens;  // [num_requests] tokens known of each request, prompt
                                             // and generated, computed or not
  KVCache& cache;
  const OutputTokens* outputs = nullptr;  // null: all tokens are
};

}  // namespace vllm_metal
