// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "attention/forward_context.h"
#include "kernels/split_rotary.h"
#include "layers/linear.h"

namespace vllm_metal {

struct AttentionConfig {
  int layer;  // index into the KV cache
  int hidden_size;
  HeadCounts heads;
  float scale;  // of the scores, usually head_dim^-0.5
};

// Causal self-attention with grouped queries over a KV cache; q, k and v as one product.
class Attention {
 public:
  static Attention load(LoadContext& load, const std::string& name, const AttentionConfig& config);

  // x        [num_tokens, hidden_size]
  // cos_sin  float32 [num_tokens, rotary_dim], from RotaryEmbedding
  // outputs  the tokens that attend; null: all. The keys and values of all are written.
  // returns  [num_tokens or num_outputs, hidden_size]
  mx::array operator()(const mx::array& x, const mx::array& cos_sin, ForwardContext& context,
                       const OutputTokens* outputs = nullptr) const;

 private:
  Attention(const AttentionConfig& config, Linear qkv, Linear output)
      : config_(config), qkv_(std::move(qkv)), output_(std::move(output)) {}

  AttentionConfig config_;
  Linear qkv_;
  Linear output_;
};

}  // namespace vllm_metal
