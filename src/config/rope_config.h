// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "files/json.h"

namespace vllm_metal {

enum class RopeType { kDefault, kLinear, kDynamic, kLlama3, kYarn };

// Settings of rotary position embedding, from either layout of a Hugging Face config: `rope_theta`
// and `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5).
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  double partial_rotary_factor = 1.0;
  double factor = 1.0;                          // all types but kDefault
  double original_max_position_embeddings = 0;  // kDynamic, kLlama3, kYarn
  double low_freq_factor = 1.0;                 // kLlama3
  double high_freq_factor = 4.0;                // kLlama3
  double beta_fast = 32.0;                      // kYarn
  double beta_slow = 1.0;                       // kYarn
  double attention_factor = 1.0;                // kYarn: multiplies cosines and sines
  bool truncate = true;  // kYarn: round the correction range to whole dimensions

  // Throws std::invalid_argument naming the key, its value and what is allowed.
  static RopeConfig from_json(const Json& config);
};

}  // namespace vllm_metal
