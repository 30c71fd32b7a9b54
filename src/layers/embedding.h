// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "layers/linear.h"

namespace vllm_metal {

// Token embeddings, plain or quantised.
class Embedding {
 public:
  // Reads `<name>.weight` (and scales, biases) of at least vocab_size rows: some checkpoints pad
  // them.
  static Embedding load(LoadContext& load, const std::string& name, int vocab_size,
                        int hidden_size);

  // ids int32 [num_tokens] -> [num_tokens, hidden_size] of the activation dtype
  mx::array operator()(const mx::array& ids) const;

  // The same matrix as output projection, for tied embeddings.
  Linear as_linear() const { return Linear(weight_); }

 private:
  Embedding(WeightMatrix weight, mx::Dtype dtype) : weight_(std::move(weight)), dtype_(dtype) {}

  WeightMatrix weight_;
  mx::Dtype dtype_;
};

// Rows of `<name>.weight`, which must be at least `vocab_size`.
int padded_vocab_size(const LoadContext& load, const std::string& name, int vocab_size);

}  // namespace vllm_metal
