// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "files/gguf.h"

namespace vllm_metal {

// What a GGUF file of architecture "llama" says about its model; names are Hugging Face's.
struct LlamaHyperparameters {
  int64_t vocab_size = 0;  // rows of the embedding
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  float rms_norm_eps = 0;
  float rope_theta = 0;
};

// Throws std::invalid_argument naming the metadata key that is missing, has another type, or asks
// for something that is not imported (experts, rope scaling, partial rotary embedding, any
// `llama.` key that is not known to be without effect).
LlamaHyperparameters read_llama_hyperparameters(const GgufHeader& header);

}  // namespace vllm_metal
