// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "sampling/sampling_params.h"

namespace vllm_metal {

// Presence, frequency and repetition penalties of one request, with the tokens that they apply to.
// Memory and the time of a draw grow with the number of different tokens.
class Penalties {
 public:
  static bool are_used(const SamplingParams& params);

  // All ids are in [0, vocab_size).
  Penalties(const SamplingParams& params, std::span<const int32_t> prompt_token_ids,
            std::span<const int32_t> output_token_ids);

  // Notes a generated token.
  void append(int32_t token_id);

  // Whether any token is penalised.
  bool are_due() const { return !counts_.empty(); }

  // Divides positive logits of tokens of prompt and output by the repetition penalty and multiplies
  // the others, then subtracts the frequency penalty as often as the token was generated and the
  // presence penalty once.
  //   logits  [vocab_size]
  void apply(std::span<float> logits) const;

 private:
  struct Count {
    int32_t token_id;
    int32_t num_generated;
  };

  Count& count_of(int32_t token_id);

  float presence_;
  float frequency_;
  float repetition_;
  std::vector<Count> counts_;                     // [num_tokens]
  std::unordered_map<int32_t, size_t> index_of_;  // token id -> index into counts_
};

}  // namespace vllm_metal
