// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cache/kv_cache.h"
#include "cache/prefix_cache.h"
#include "sampling/prompt_logprobs.h"

namespace vllm_metal {

// One step's batch as the device computes it: requests one after the other in the order scheduled.
struct PackedStep {
  struct PendingToken {
    size_t index;  // among token_ids, which holds 0 there
    int32_t row;   // of the tokens that the step before draws
  };
  // Rows of a prompt whose logits score its tokens.
  struct PromptRows {
    std::shared_ptr<PromptLogprobs> scores;
    int32_t first_row;  // among the step's tokens
    int32_t first_position;
    int32_t count;
  };
  CacheStep cache;
  std::vector<int32_t> token_ids;     // [num_tokens]
  std::vector<PendingToken> pending;  // those of token_ids not yet known
  std::vector<int32_t> positions;     // [num_tokens]
  std::vector<int32_t> request_lens;  // [num_requests] known tokens
  std::vector<int32_t> sample_rows;   // [num_samples] row of a request's last token
  bool takes_most_likely = true;      // all samples do, as far as their parameters tell
  std::vector<PromptRows> prompt_rows;
};

// What the prefix cache does around a step, in this order.
struct PrefixCacheStep {
  bool clear = false;
  std::vector<CachedBlocks> saves_of_ended;      // before their requests are released
  std::vector<CachedBlocks> loads;               // once the cache has made room
  std::vector<CachedBlocks> saves_of_scheduled;  // once the step is computed
};

}  // namespace vllm_metal
