// SPDX-License-Identifier: Apache-2.0
#include "sampling/sampler_config.h"

#include <stdexcept>

#include "common/text.h"

namespace vllm_metal {

LogprobsMode parse_logprobs_mode(const std::string& name) {
  if (name == "raw_logprobs") return LogprobsMode::kRawLogprobs;
  if (name == "raw_logits") return LogprobsMode::kRawLogits;
  if (name == "processed_logprobs") return LogprobsMode::kProcessedLogprobs;
  if (name == "processed_logits") return LogprobsMode::kProcessedLogits;
  throw std::invalid_argument(
      text("[sampler] logprobs_mode must be one of raw_logprobs, raw_logits, processed_logprobs, "
           "processed_logits but is '",
           name, "'."));
}

void SamplerConfig::validate() const {
  if (vocab_size >= 1) return;
  throw std::invalid_argument(
      text("[sampler] vocab_size must be at least 1 but got ", vocab_size, "."));
}

}  // namespace vllm_metal
