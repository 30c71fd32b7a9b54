// SPDX-License-Identifier: Apache-2.0
#include "layers/embedding.h"

#include <limits>
#include <stdexcept>

#include "common/text.h"

namespace vllm_metal {

int padded_vocab_size(const LoadContext& load, const std::string& name, int vocab_size) {
  const auto& shape = load.weights.shape(name + ".weight");
  if (shape.size() != 2 || shape[0] < vocab_size || shape[0] > std::numeric_limits<int>::max())
    throw std::invalid_argument(text("[weights] ", name,
                                     ".weight must be a matrix of at least vocab_size (",
                                     vocab_size, ") rows but has shape [", join(shape), "]."));
  return static_cast<int>(shape[0]);
}

Embedding Embedding::load(LoadContext& load, const std::string& name, int vocab_size,
                          int hidden_size) {
  const Projection rows{name, padded_vocab_size(load, name, vocab_size)};
  return Embedding(load_weight_matrix(load, std::span(&rows, 1), hidden_size), load.dtype);
}

mx::array Embedding::operator()(const mx::array& ids) const {
  if (const auto* packed = std::get_if<PackedMatrix>(&weight_))
    return packed_rows(*packed, ids, dtype_);
  if (const auto* quantized = std::get_if<QuantizedMatrix>(&weight_))
    return quantized_rows(*quantized, ids, dtype_);
  return mx::take(std::get<mx::array>(weight_), ids, 0);
}

}  // namespace vllm_metal
