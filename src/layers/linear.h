// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "kernels/packed_linear.h"
#include "layers/load_context.h"

namespace vllm_metal {

// A matrix of weights, plain or quantised, the latter in the device's own order where it has one:
// what Linear and Embedding share.
using WeightMatrix = std::variant<mx::array, QuantizedMatrix, PackedMatrix>;

// One of the projections that a Linear computes.
struct Projection {
  std::string name;  // of the module, "model.layers.0.self_attn.q_proj"
  int out_features;
};

// One or more projections of the same input, computed as one matrix product where their weights
// have the same form, else one product each. The results stand side by side in the order given.
class Linear {
 public:
  // Reads `<name>.weight`, with `.scales` and `.biases` where quantised, and `<name>.bias` where
  // present.
  static Linear load(LoadContext& load, std::span<const Projection> projections, int in_features);
  static Linear load(LoadContext& load, const std::string& name, int in_features, int out_features);

  // The product with a matrix that another layer owns: tied embeddings.
  explicit Linear(WeightMatrix weight, std::optional<mx::array> bias = std::nullopt);

  // x [..., in_features] -> [..., sum of out_features] of x's dtype
  mx::array operator()(const mx::array& x) const;

  // Matrix products a call makes: 1 when fused.
  size_t num_products() const { return parts_.size(); }

 private:
  struct Part {
    WeightMatrix weight;
    std::optional<mx::array> bias;  // [out_features]
  };
  Linear() = default;
  static Part load_part(LoadContext& load, std::span<const Projection> projections,
                        int in_features);

  std::vector<Part> parts_;
};

// Reads one matrix, rows of all `projections` below one another; all must have the same form.
WeightMatrix load_weight_matrix(LoadContext& load, std::span<const Projection> projections,
                                int in_features);

}  // namespace vllm_metal
