// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sampling/logprobs.h"
#include "sampling/sampling_params.h"

namespace vllm_metal {

// One row of logits to draw from.
struct SampleRequest {
  const SamplingParams* params;
  uint64_t seed;         // the request's own: its seed parameter or a random number kept with it
  int64_t output_index;  // tokens the request has generated so far: a draw depends on both only
};

struct SampleOutput {
  static constexpr int32_t kFailed = -1;
  std::vector<int32_t> token_ids;  // [num_rows]; kFailed where any logit is NaN or all are -inf
  Logprobs logprobs;               // width 0 when no row asked for any
};

// Draws one token a row, in vLLM's order of operations: raw log probabilities, then greedy or
// temperature, top-k, top-p, draw. The most likely token of equal logits is the lowest id.
// A logit of -inf is never drawn; one of +inf takes all the probability, several share it.
// A row's result depends on its own logits and request only, never on the rest of the batch.
//   logits  float32 [num_rows, vocab_size], row-major
// Throws std::invalid_argument for logits of another size and for parameters that fail validate().
SampleOutput sample(std::span<const float> logits, int vocab_size,
                    std::span<const SampleRequest> requests);

}  // namespace vllm_metal
