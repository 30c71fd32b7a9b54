// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include "config/quantization_config.h"
#include "config/rope_config.h"
#include "files/json.h"

namespace vllm_metal {

// What decoder-only language models share, read from a Hugging Face config by its key names. An
// architecture reads keys of its own from `json`.
struct ModelConfig {
  Json json;                 // the whole config
  std::string architecture;  // architectures[0], e.g. "LlamaForCausalLM"
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_hidden_layers = 0;
  int num_attention_heads = 0;
  int num_key_value_heads = 0;
  int head_dim = 0;
  int vocab_size = 0;
  int max_position_embeddings = 0;
  float rms_norm_eps = 1e-6f;
  bool tie_word_embeddings = false;
  RopeConfig rope;
  std::optional<QuantizationConfig> quantization;

  // Throws std::invalid_argument naming the key that lacks or that has a value outside its range.
  static ModelConfig from_json(Json config);

  // A boolean key of the config, false where it lacks.
  bool flag(std::string_view key) const;
};

}  // namespace vllm_metal
