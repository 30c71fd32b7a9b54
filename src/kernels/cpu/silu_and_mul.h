// SPDX-License-Identifier: Apache-2.0
// The CPU kernel of kernels/silu_and_mul.h, which checks the arguments.
#pragma once

#include "common/mlx.h"

namespace vllm_metal::cpu {

mx::array silu_and_mul(const mx::array& gate_up);

}  // namespace vllm_metal::cpu
