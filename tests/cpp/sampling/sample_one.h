// SPDX-License-Identifier: Apache-2.0
// One row drawn by a request that lives for this draw only.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "sampling/sampler.h"

namespace vllm_metal {

struct Request {
  uint64_t seed = 0;
  // Tokens so far; the last `num_output_tokens` of them are output.
  std::vector<int32_t> token_ids = {};
  int64_t num_output_tokens = 0;
  const int32_t* bitmask = nullptr;
};

inline SamplerConfig config_of(const std::vector<float>& logits) {
  return {.vocab_size = static_cast<int>(logits.size())};
}

inline SamplingState make_state(const SamplerConfig& config, const SamplingParams& params,
                                const Request& request = {}) {
  return SamplingState(std::make_shared<const SamplingParams>(params), request.seed, config,
                       request.token_ids, request.num_output_tokens);
}

inline SampleOutput sample_one(const SamplerConfig& config, const std::vector<float>& logits,
                               const SamplingParams& params, const Request& request = {}) {
  SamplingState state = make_state(config, params, request);
  const SampleRow row{&state, request.bitmask};
  return sample(config, logits, {&row, 1});
}

inline SampleOutput sample_one(const std::vector<float>& logits, const SamplingParams& params,
                               const Request& request = {}) {
  return sample_one(config_of(logits), logits, params, request);
}

inline int32_t token_of(const std::vector<float>& logits, const SamplingParams& params,
                        const Request& request = {}) {
  return sample_one(logits, params, request).token_ids.at(0);
}

// A request that has `num_output_tokens` behind it, of no matter which kind.
inline Request at_index(uint64_t seed, int64_t num_output_tokens) {
  return {.seed = seed,
          .token_ids = std::vector<int32_t>(static_cast<size_t>(num_output_tokens), 0),
          .num_output_tokens = num_output_tokens};
}

}  // namespace vllm_metal
