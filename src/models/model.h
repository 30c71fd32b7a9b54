// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "attention/forward_context.h"
#include "config/model_config.h"
#include "layers/load_context.h"

namespace vllm_metal {

// A decoder-only language model: constant once loaded, so that one may serve many caches.
class Model {
 public:
  virtual ~Model() = default;

  // Writes the keys and values of the step's tokens into the cache and returns the final hidden
  // states, normalised, of all tokens or of the context's outputs: [num_rows, hidden_size].
  //   token_ids  int32 [num_tokens]
  virtual mx::array forward(const mx::array& token_ids, ForwardContext& context) const = 0;

  // hidden [num_rows, hidden_size] -> logits [num_rows, vocab_size] of the activation dtype
  virtual mx::array logits(const mx::array& hidden) const = 0;

  virtual KVCacheSpec kv_cache_spec() const = 0;
};

// Makes a model of one architecture, taking its weights. Throws std::invalid_argument for what
// config or weights lack.
using ModelFactory = std::unique_ptr<Model> (*)(const ModelConfig& config, LoadContext& load);

}  // namespace vllm_metal
