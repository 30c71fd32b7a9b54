// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>

#include "kernels/rms_norm.h"
#include "layers/load_context.h"

namespace vllm_metal {

// Root mean square normalisation with a learned scale.
class RMSNorm {
 public:
  static RMSNorm load(LoadContext& load, const std::string& name, int size, float eps) {
    return RMSNorm(load.weights.take(name + ".weight", {size}, load.dtype), eps);
  }

  // x [..., size]
  mx::array operator()(const mx::array& x) const { return rms_norm(x, weight_, eps_); }

  // {x + residual, its normalisation}: the two uses of a residual stream in one node.
  std::pair<mx::array, mx::array> operator()(const mx::array& x, const mx::array& residual) const {
    return add_rms_norm(x, residual, weight_, eps_);
  }

 private:
  RMSNorm(mx::array weight, float eps) : weight_(std::move(weight)), eps_(eps) {}

  mx::array weight_;  // [size]
  float eps_;
};

}  // namespace vllm_metal
