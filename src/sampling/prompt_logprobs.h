// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "sampling/logprobs.h"
#include "sampling/sampler_config.h"
#include "sampling/sampling_params.h"

namespace vllm_metal {

// Scores of the tokens of one request's prompt, gathered chunk by chunk as the prompt is computed.
// Row i scores prompt token i + 1 by the logits at position i. No mask, penalty or temperature
// applies, so that the raw and the processed modes of logprobs_mode give the same.
class PromptLogprobs {
 public:
  // params  has num_prompt_logprobs or prompt_logprob_token_ids; kept
  // prompt_token_ids  at least one
  // Throws std::invalid_argument for ids and rows that do not fit the vocabulary and the prompt.
  PromptLogprobs(std::shared_ptr<const SamplingParams> params, const SamplerConfig& config,
                 std::vector<int32_t> prompt_token_ids);

  // Scores the rows from `first_position` on; those past the last but one are ignored. Several
  // threads may add different rows at once. Rows with NaN stay as they are: -inf.
  //   logits  float32 [num_rows, vocab_size], the model's own
  void add(int64_t first_position, std::span<const float> logits);

  const SamplingParams& params() const { return *params_; }
  // [prompt_len - 1, width]; column 0 the prompt's own token.
  const Logprobs& logprobs() const { return logprobs_; }
  // Scores of prompt_logprob_token_ids: [num_rows, prompt_logprob_ids_per_row].
  const std::vector<float>& token_id_scores() const { return token_id_scores_; }

 private:
  void add_row(size_t position, std::span<const float> logits);
  void score_token_ids(size_t position, RowSoftmax& softmax);

  std::shared_ptr<const SamplingParams> params_;
  int vocab_size_;
  LogprobsMode mode_;
  std::vector<int32_t> prompt_token_ids_;
  Logprobs logprobs_;
  std::vector<float> token_id_scores_;
};

}  // namespace vllm_metal
