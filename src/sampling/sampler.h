// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sampling/logprobs.h"
#include "sampling/sampler_config.h"
#include "sampling/sampling_state.h"

namespace vllm_metal {

// One row of logits to draw from.
struct SampleRow {
  SamplingState* state;
  // Tokens that the grammar allows, one bit each, lowest bits first: [ceil(vocab_size / 32)].
  // Null: all.
  const int32_t* bitmask = nullptr;
};

struct SampleOutput {
  static constexpr int32_t kFailed = -1;
  // [num_rows]; kFailed where a logit that the masks leave is NaN or all are -inf
  std::vector<int32_t> token_ids;
  Logprobs logprobs;  // width 0 when no row asked for any
};

// Room for the results of `rows`, nothing drawn yet. Throws std::invalid_argument for rows without
// a state.
SampleOutput make_sample_output(const SamplerConfig& config, std::span<const SampleRow> rows);

// Draws the token of row `row` into `output` and appends it to the row's state, in vLLM's order of
// operations. The most likely token of equal logits is the lowest id. A logit of -inf is never
// drawn; one of +inf takes all the probability, several share it. The result depends on this row's
// logits and state only. Rows may be drawn by several threads, each row by one.
//   logits  float32 [vocab_size]
void sample_row(const SamplerConfig& config, std::span<const float> logits, const SampleRow& row,
                size_t index, SampleOutput& output);

// Draws one token a row.
//   logits  float32 [num_rows, vocab_size], row-major
// Throws std::invalid_argument for logits of another size.
SampleOutput sample(const SamplerConfig& config, std::span<const float> logits,
                    std::span<const SampleRow> rows);

}  // namespace vllm_metal
