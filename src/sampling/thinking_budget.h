// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "sampling/sampler_config.h"
#include "sampling/token_tail.h"

namespace vllm_metal {

// Ends the thinking of a reasoning model that has used up its budget of tokens.
//
//   … <start> t t t t │ <end> …      budget 4: from here on the tokens of the forced end mark
//
// A section begins after the last start mark, in prompt or output, that no end mark follows; each
// has the whole budget. A model that began the end mark on its own is led on from there.
class ThinkingBudget {
 public:
  // budget  at least 0
  // config  with start and end marks
  // token_ids  prompt and output so far
  ThinkingBudget(int budget, const SamplerConfig& config, std::span<const int32_t> token_ids);

  void append(int32_t token_id);

  // The token that must come next; nullopt: the model goes on by itself.
  std::optional<int32_t> forced_token() const;

 private:
  int64_t budget_;
  std::vector<int32_t> start_;
  std::vector<int32_t> forced_end_;
  std::vector<int32_t> natural_end_;
  TokenTail tail_;
  // Positions at which the last marks begin, -1 before the first.
  int64_t num_tokens_ = 0;
  int64_t last_start_ = -1;
  int64_t last_end_ = -1;
};

}  // namespace vllm_metal
