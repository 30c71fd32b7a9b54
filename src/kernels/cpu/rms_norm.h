// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of kernels/rms_norm.h, which checks the arguments.
#pragma once

#include <utility>

#include "common/mlx.h"

namespace vllm_metal::cpu {

mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps);
std::pair<mx::array, mx::array> add_rms_norm(const mx::array& x, const mx::array& residual,
                                             const mx::array& weight, float eps);

}  // namespace vllm_metal::cpu
