// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "common/mlx.h"

namespace vllm_metal {

// Root mean square normalisation (arXiv:1910.07467): x / sqrt(mean(x²) + eps) * weight, computed
// in float32, returned in x's dtype.
//   x [..., hidden_size], weight [hidden_size] of x's dtype
mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps);
mx::array rms_norm_fallback(const mx::array& x, const mx::array& weight, float eps);

// {x + residual, rms_norm(x + residual, weight, eps)} in one node. The sum is rounded to x's dtype
// before it is normalised, as if the two ops stood apart.
std::pair<mx::array, mx::array> add_rms_norm(const mx::array& x, const mx::array& residual,
                                             const mx::array& weight, float eps);
std::pair<mx::array, mx::array> add_rms_norm_fallback(const mx::array& x, const mx::array& residual,
                                                      const mx::array& weight, float eps);

}  // namespace vllm_metal
