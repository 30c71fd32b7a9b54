// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "sampling/softmax.h"

namespace vllm_metal {

// Log probabilities of the drawn tokens and of the most likely ones, one row for each row of the
// batch. Raw: log softmax of the model's logits, before temperature and filters. What a row did
// not ask for, and all of a row that failed, is padding: -inf, id 0, rank 0.
struct Logprobs {
  int width = 0;                   // 1 + the largest num_logprobs of the batch, at most 1 + vocab
  std::vector<int32_t> token_ids;  // [num_rows, width], column 0 the drawn token, then best first
  std::vector<float> values;       // [num_rows, width]
  std::vector<int32_t> ranks;      // [num_rows] tokens as likely as the drawn one or likelier
};

// `num_rows` rows of padding.
Logprobs make_logprobs(size_t num_rows, int width);

// Fills row `row` of `logprobs`: the drawn token, then the `num_logprobs` most likely tokens,
// lower ids first where logits are equal. num_logprobs in [0, vocab_size], below logprobs.width.
void gather_logprobs(RowSoftmax& softmax, int32_t drawn_token, int num_logprobs, size_t row,
                     Logprobs& logprobs);

}  // namespace vllm_metal
