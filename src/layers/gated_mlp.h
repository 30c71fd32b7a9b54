// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <string>

#include "kernels/silu_and_mul.h"
#include "layers/linear.h"

namespace vllm_metal {

// down(silu(gate(x)) * up(x)), with gate and up as one product.
class GatedMLP {
 public:
  static GatedMLP load(LoadContext& load, const std::string& name, int hidden_size,
                       int intermediate_size) {
    const std::array<Projection, 2> gate_up{
        {{name + ".gate_proj", intermediate_size}, {name + ".up_proj", intermediate_size}}};
    return GatedMLP(Linear::load(load, gate_up, hidden_size),
                    Linear::load(load, name + ".down_proj", intermediate_size, hidden_size));
  }

  // x [num_tokens, hidden_size] -> the same shape
  mx::array operator()(const mx::array& x) const { return down_(silu_and_mul(gate_up_(x))); }

 private:
  GatedMLP(Linear gate_up, Linear down) : gate_up_(std::move(gate_up)), down_(std::move(down)) {}

  Linear gate_up_;
  Linear down_;
};

}  // namespace vllm_metal
