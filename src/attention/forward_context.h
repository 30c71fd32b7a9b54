// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "cache/kv_cache.h"

namespace vllm_metal {

// What a forward pass knows of its step besides the token ids: where the tokens stand in their
// requests and where their keys and values go. Passed explicitly to every layer.
struct ForwardContext {
  const BatchLayout& layout;
  const std::vector<int32_t>& positions;     // [num_tokens] position of each token in its request
  const std::vector<int32_t>& request_lens;  // [num_requests] tokens known of each request, prompt
                                             // and generated, computed or not
  KVCache& cache;
};

}  // namespace vllm_metal
