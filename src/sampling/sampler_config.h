// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace vllm_metal {

// What the scores given with tokens are: log probabilities or logits, of the model or of what is
// left after penalties, masks, temperature and filters.
enum class LogprobsMode { kRawLogprobs, kRawLogits, kProcessedLogprobs, kProcessedLogits };

// "raw_logprobs", "raw_logits", "processed_logprobs" or "processed_logits"; throws
// std::invalid_argument for others.
LogprobsMode parse_logprobs_mode(const std::string& name);

// What sampling knows of the model and the engine, the same for all requests.
struct SamplerConfig {
  int vocab_size = 0;
  LogprobsMode logprobs_mode = LogprobsMode::kRawLogprobs;
  // Of the seeds that requests without one get, in the order in which they come; unset: none.
  std::optional<uint64_t> seed = std::nullopt;
  // Marks around what a reasoning model thinks; empty where thinking budgets are not supported.
  std::vector<int32_t> reasoning_start_token_ids = {};
  std::vector<int32_t> reasoning_end_token_ids = {};          // forced when a budget is used up
  std::vector<int32_t> natural_reasoning_end_token_ids = {};  // ends thinking when drawn

  // Throws std::invalid_argument for an empty vocabulary.
  void validate() const;
};

}  // namespace vllm_metal
