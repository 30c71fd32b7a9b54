// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "sampling/bad_words.h"
#include "sampling/penalties.h"
#include "sampling/sampler_config.h"
#include "sampling/sampling_params.h"
#include "sampling/thinking_budget.h"

namespace vllm_metal {

// One request as sampling sees it: its parameters, and what they need to know of its tokens. The
// runner makes it and hands it to the thread that draws; that thread alone uses it from then on.
// Nothing of the vocabulary's size is kept.
class SamplingState {
 public:
  // seed  the request's own: its seed parameter or a random number kept with it
  // token_ids  prompt and output so far; the last `num_output_tokens` of them are output
  // Throws std::invalid_argument for parameters and tokens that do not fit the vocabulary.
  SamplingState(std::shared_ptr<const SamplingParams> params, uint64_t seed,
                const SamplerConfig& config, std::span<const int32_t> token_ids,
                int64_t num_output_tokens);

  const SamplingParams& params() const { return *params_; }
  uint64_t seed() const { return seed_; }
  // Index of the next token among those generated: a draw depends on it and the seed only.
  int64_t num_output_tokens() const { return num_output_tokens_; }

  // Notes a token that was generated. Throws std::invalid_argument where it is none.
  void append(int32_t token_id);

  // Whether the request changes the logits of its next token, beyond temperature and filters.
  bool edits_logits() const;
  // Whether min_tokens holds back the stop tokens of the next draw.
  bool masks_stop_tokens() const;
  // Changes the logits of the tokens in question, in vLLM's order: bad words, min_tokens, logit
  // bias, penalties, thinking budget. allowed_token_ids are left to whoever makes the copy.
  //   logits  [vocab_size]
  void edit(std::span<float> logits, bool mask_stop_tokens) const;

 private:
  std::shared_ptr<const SamplingParams> params_;
  uint64_t seed_;
  int vocab_size_;
  int64_t num_output_tokens_;
  std::optional<Penalties> penalties_;
  std::optional<BadWords> bad_words_;
  std::optional<ThinkingBudget> thinking_budget_;
};

}  // namespace vllm_metal
