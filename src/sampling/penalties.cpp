// SPDX-License-Identifier: Apache-2.0
#include "sampling/penalties.h"

namespace vllm_metal {

bool Penalties::are_used(const SamplingParams& params) {
  return params.presence_penalty != 0 || params.frequency_penalty != 0 ||
         params.repetition_penalty != 1;
}

Penalties::Penalties(const SamplingParams& params, std::span<const int32_t> prompt_token_ids,
                     std::span<const int32_t> output_token_ids)
    : presence_(params.presence_penalty),
      frequency_(params.frequency_penalty),
      repetition_(params.repetition_penalty) {
  // The other penalties know nothing of the prompt.
  if (repetition_ != 1) {
    for (int32_t token_id : prompt_token_ids) count_of(token_id);
  }
  for (int32_t token_id : output_token_ids) append(token_id);
}

Penalties::Count& Penalties::count_of(int32_t token_id) {
  const auto [place, is_new] = index_of_.try_emplace(token_id, counts_.size());
  if (is_new) counts_.push_back({token_id, 0});
  return counts_[place->second];
}

void Penalties::append(int32_t token_id) { ++count_of(token_id).num_generated; }

void Penalties::apply(std::span<float> logits) const {
  const float divisor = 1.0f / repetition_;
  for (const auto& [token_id, num_generated] : counts_) {
    float& logit = logits[static_cast<size_t>(token_id)];
    logit *= logit > 0 ? divisor : repetition_;
    logit -= frequency_ * static_cast<float>(num_generated);
    if (num_generated > 0) logit -= presence_;
  }
}

}  // namespace vllm_metal
