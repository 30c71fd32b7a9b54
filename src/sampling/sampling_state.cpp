// SPDX-License-Identifier: Apache-2.0
#include "sampling/sampling_state.h"

#include <limits>
#include <stdexcept>
#include <utility>

#include "common/text.h"

namespace vllm_metal {
namespace {

// Above all logits of a model; vLLM's value.
constexpr float kForcedLogit = 1e9f;

void check_id(int32_t token_id, const char* name, int vocab_size) {
  if (token_id >= 0 && token_id < vocab_size) return;
  throw std::invalid_argument(
      text("[sampling_state] ", name, " must be in [0, ", vocab_size, ") but got ", token_id, "."));
}

void check_ids(std::span<const int32_t> token_ids, const char* name, int vocab_size) {
  for (int32_t token_id : token_ids) check_id(token_id, name, vocab_size);
}

void check_not_negative(std::span<const int32_t> token_ids, const char* name) {
  for (const int32_t token_id : token_ids) {
    if (token_id < 0)
      throw std::invalid_argument(
          text("[sampling_state] ", name, " must not be negative but has ", token_id, "."));
  }
}

const SamplingParams& checked(const std::shared_ptr<const SamplingParams>& params,
                              const SamplerConfig& config) {
  if (params == nullptr) throw std::invalid_argument("[sampling_state] params must not be null.");
  params->validate();
  const int vocab_size = config.vocab_size;
  for (const auto& [token_id, bias] : params->logit_bias)
    check_id(token_id, "logit_bias", vocab_size);
  if (params->allowed_token_ids)
    check_ids(*params->allowed_token_ids, "allowed_token_ids", vocab_size);
  // Of a tokenizer that knows more tokens than the model: those are never drawn.
  for (const auto& word : params->bad_words_token_ids)
    check_not_negative(word, "bad_words_token_ids");
  check_ids(params->logprob_token_ids, "logprob_token_ids", vocab_size);
  return *params;
}

void check_reasoning(const SamplerConfig& config) {
  if (config.reasoning_start_token_ids.empty() || config.reasoning_end_token_ids.empty()) {
    throw std::invalid_argument(
        "[sampling_state] thinking_token_budget needs the tokens that start and end the model's "
        "reasoning, but the engine was given none.");
  }
  check_ids(config.reasoning_end_token_ids, "reasoning_end_token_ids", config.vocab_size);
}

}  // namespace

SamplingState::SamplingState(std::shared_ptr<const SamplingParams> params, uint64_t seed,
                             const SamplerConfig& config, std::span<const int32_t> token_ids,
                             int64_t num_output_tokens)
    : params_(std::move(params)),
      seed_(seed),
      vocab_size_(config.vocab_size),
      num_output_tokens_(num_output_tokens) {
  const SamplingParams& given = checked(params_, config);
  const auto num_tokens = static_cast<int64_t>(token_ids.size());
  if (num_output_tokens < 0 || num_output_tokens > num_tokens) {
    throw std::invalid_argument(text("[sampling_state] num_output_tokens must be in [0, ",
                                     num_tokens, "] but got ", num_output_tokens, "."));
  }
  check_ids(token_ids, "token_ids", vocab_size_);
  const auto prompt = token_ids.first(static_cast<size_t>(num_tokens - num_output_tokens));
  const auto output = token_ids.last(static_cast<size_t>(num_output_tokens));
  if (Penalties::are_used(given)) penalties_.emplace(given, prompt, output);
  if (!given.bad_words_token_ids.empty()) bad_words_.emplace(given.bad_words_token_ids, output);
  if (given.thinking_token_budget) {
    check_reasoning(config);
    thinking_budget_.emplace(*given.thinking_token_budget, config, token_ids);
  }
}

void SamplingState::append(int32_t token_id) {
  check_id(token_id, "the appended token", vocab_size_);
  ++num_output_tokens_;
  if (penalties_) penalties_->append(token_id);
  if (bad_words_) bad_words_->append(token_id);
  if (thinking_budget_) thinking_budget_->append(token_id);
}

bool SamplingState::edits_logits() const {
  return params_->allowed_token_ids || !params_->logit_bias.empty() || masks_stop_tokens() ||
         (penalties_ && penalties_->are_due()) || (bad_words_ && bad_words_->are_due()) ||
         (thinking_budget_ && thinking_budget_->forced_token());
}

bool SamplingState::masks_stop_tokens() const {
  return num_output_tokens_ < params_->min_tokens && !params_->all_stop_token_ids.empty();
}

void SamplingState::edit(std::span<float> logits, bool mask_stop_tokens) const {
  const auto logit_of = [&](int32_t id) -> float& { return logits[static_cast<size_t>(id)]; };
  if (bad_words_) bad_words_->apply(logits);
  if (mask_stop_tokens) {
    for (int32_t id : params_->all_stop_token_ids)
      if (id >= 0 && id < vocab_size_) logit_of(id) = -std::numeric_limits<float>::infinity();
  }
  for (const auto& [id, bias] : params_->logit_bias) logit_of(id) += bias;
  if (penalties_) penalties_->apply(logits);
  if (thinking_budget_) {
    if (const auto token_id = thinking_budget_->forced_token()) logit_of(*token_id) = kForcedLogit;
  }
}

}  // namespace vllm_metal
