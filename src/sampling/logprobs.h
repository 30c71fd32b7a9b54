// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sampling/sampler_config.h"
#include "sampling/softmax.h"
#include "sampling/top_k.h"

namespace vllm_metal {

// Scores of the drawn tokens and of others, one row for each row of the batch: log probabilities
// or logits, as the engine's logprobs_mode says. What a row did not ask for, and all of a row that
// failed, is padding: -inf, id 0, rank 0.
struct Logprobs {
  int width = 0;                   // 1 + the most other tokens of any row, at most 1 + vocab
  std::vector<int32_t> token_ids;  // [num_rows, width], column 0 the drawn token, then best first
  std::vector<float> values;       // [num_rows, width]
  std::vector<int32_t> ranks;      // [num_rows] tokens as likely as the drawn one or likelier
};

// `num_rows` rows of padding.
Logprobs make_logprobs(size_t num_rows, int width);

// The number of most likely tokens that `num_logprobs` asks for: -1 means the whole vocabulary.
int resolve_num_logprobs(int num_logprobs, int vocab_size);

// Which tokens of a row are scored, besides the drawn one.
struct ScoredTokens {
  int32_t drawn_token;
  int num_most_likely = 0;                  // [0, vocab_size], lower ids first where equal
  std::span<const int32_t> token_ids = {};  // these instead, unless empty
};

// Fills row `row` of `logprobs` from a row of logits without NaN.
class RowScorer {
 public:
  void score(RowSoftmax& softmax, LogprobsMode mode, const ScoredTokens& tokens, size_t row,
             Logprobs& logprobs);

 private:
  std::vector<RankedValue> largest_;
};

// Scores of some tokens of a row.
void gather_scores(RowSoftmax& softmax, LogprobsMode mode, std::span<const int32_t> token_ids,
                   std::span<float> scores);

}  // namespace vllm_metal
