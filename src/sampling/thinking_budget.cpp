// SPDX-License-Identifier: Apache-2.0
#include "sampling/thinking_budget.h"

#include <algorithm>

namespace vllm_metal {

ThinkingBudget::ThinkingBudget(int budget, const SamplerConfig& config,
                               std::span<const int32_t> token_ids)
    : budget_(budget),
      start_(config.reasoning_start_token_ids),
      forced_end_(config.reasoning_end_token_ids),
      natural_end_(config.natural_reasoning_end_token_ids.empty()
                       ? config.reasoning_end_token_ids
                       : config.natural_reasoning_end_token_ids),
      tail_(std::max({start_.size(), forced_end_.size(), natural_end_.size()})) {
  for (int32_t token_id : token_ids) append(token_id);
}

void ThinkingBudget::append(int32_t token_id) {
  tail_.append(token_id);
  ++num_tokens_;
  const auto ends_at = [&](const std::vector<int32_t>& mark, int64_t& position) {
    if (tail_.ends_with(mark)) position = num_tokens_ - static_cast<int64_t>(mark.size());
  };
  ends_at(start_, last_start_);
  ends_at(natural_end_, last_end_);
  // Usually it contains the natural one; where it does not, it still has to end the section.
  ends_at(forced_end_, last_end_);
}

std::optional<int32_t> ThinkingBudget::forced_token() const {
  if (last_start_ <= last_end_) return std::nullopt;
  const int64_t num_thought = num_tokens_ - last_start_ - static_cast<int64_t>(start_.size());
  if (num_thought < budget_) return std::nullopt;
  // The longest part of the mark that the tokens already end with.
  const std::span<const int32_t> end(forced_end_);
  size_t num_there = end.size() - 1;
  while (num_there > 0 && !tail_.ends_with(end.first(num_there))) --num_there;
  return end[num_there];
}

}  // namespace vllm_metal
