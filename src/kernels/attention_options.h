// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "common/mlx.h"

namespace vllm_metal {

// What a layer's attention does to scores, beside being causal.
struct AttentionOptions {
  float scale;             // score = scale * query · key, usually head_dim^-0.5
  int sliding_window = 0;  // keys that a query sees, its own included; 0: all
  float soft_cap = 0;      // score -> soft_cap * tanh(score / soft_cap) (arXiv:2408.00118); 0: none
  // float32 [num_heads]: a score that joins each head's softmax as if of a key with no value, and
  // that no cap changes.
  std::optional<mx::array> sinks = std::nullopt;

  bool plain() const { return sliding_window == 0 && soft_cap == 0 && !sinks; }
};

}  // namespace vllm_metal
