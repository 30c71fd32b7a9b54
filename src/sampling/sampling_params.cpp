// SPDX-License-Identifier: Apache-2.0
#include "sampling/sampling_params.h"

#include <cmath>
#include <stdexcept>

#include "common/text.h"

namespace vllm_metal {
namespace {

template <typename Value>
void require(bool holds, const char* name, const char* allowed, const Value& value) {
  if (holds) return;
  throw std::invalid_argument(
      text("[sampling_params] ", name, " must be ", allowed, " but got ", value, "."));
}

// The conditions below are written so that NaN fails them.

void check_distribution(const SamplingParams& params) {
  require(std::isfinite(params.temperature) && params.temperature >= 0, "temperature",
          "a finite number of at least 0", params.temperature);
  require(params.top_p > 0 && params.top_p <= 1, "top_p", "in (0, 1]", params.top_p);
  require(params.top_k >= -1, "top_k", "0 or -1 (all tokens) or at least 1", params.top_k);
  require(params.min_p >= 0 && params.min_p <= 1, "min_p", "in [0, 1]", params.min_p);
}

void check_penalties(const SamplingParams& params) {
  require(std::isfinite(params.presence_penalty), "presence_penalty", "a finite number",
          params.presence_penalty);
  require(std::isfinite(params.frequency_penalty), "frequency_penalty", "a finite number",
          params.frequency_penalty);
  require(std::isfinite(params.repetition_penalty) && params.repetition_penalty > 0,
          "repetition_penalty", "a finite number above 0", params.repetition_penalty);
}

void check_masks(const SamplingParams& params) {
  for (const auto& [token_id, bias] : params.logit_bias)
    require(bias < INFINITY, "logit_bias", "a number below infinity", bias);
  if (params.allowed_token_ids && params.allowed_token_ids->empty()) {
    throw std::invalid_argument(
        "[sampling_params] allowed_token_ids must name at least one token but is empty.");
  }
  for (const auto& word : params.bad_words_token_ids) {
    if (word.empty()) {
      throw std::invalid_argument(
          "[sampling_params] each of bad_words_token_ids must have at least one token but one is "
          "empty.");
    }
  }
  require(params.min_tokens >= 0, "min_tokens", "at least 0", params.min_tokens);
  if (const auto& budget = params.thinking_token_budget)
    require(*budget >= 0, "thinking_token_budget", "at least 0", *budget);
}

void check_scores(const SamplingParams& params) {
  constexpr const char* kCount = "-1 (the whole vocabulary) or at least 0";
  if (const auto& count = params.num_logprobs)
    require(*count >= -1, "num_logprobs", kCount, *count);
  if (const auto& count = params.num_prompt_logprobs)
    require(*count >= -1, "num_prompt_logprobs", kCount, *count);
  require(params.prompt_logprob_start >= 0, "prompt_logprob_start", "at least 0",
          params.prompt_logprob_start);
  const size_t num_ids = params.prompt_logprob_token_ids.size();
  if (num_ids == 0) return;
  require(params.prompt_logprob_ids_per_row >= 1, "prompt_logprob_ids_per_row", "at least 1",
          params.prompt_logprob_ids_per_row);
  require(num_ids % static_cast<size_t>(params.prompt_logprob_ids_per_row) == 0,
          "the number of prompt_logprob_token_ids",
          text("a multiple of prompt_logprob_ids_per_row = ", params.prompt_logprob_ids_per_row)
              .c_str(),
          num_ids);
}

}  // namespace

bool SamplingParams::takes_most_likely() const {
  return is_greedy() && presence_penalty == 0 && frequency_penalty == 0 &&
         repetition_penalty == 1 && logit_bias.empty() && !allowed_token_ids &&
         bad_words_token_ids.empty() && min_tokens == 0 && !has_grammar && !thinking_token_budget;
}

void SamplingParams::validate() const {
  check_distribution(*this);
  check_penalties(*this);
  check_masks(*this);
  check_scores(*this);
}

}  // namespace vllm_metal
