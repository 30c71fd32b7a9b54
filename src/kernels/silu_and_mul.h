// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/mlx.h"

namespace vllm_metal {

// The gated activation of a SwiGLU MLP (arXiv:2002.05202): silu(gate) * up, in float32 inside.
//   gate_up  [..., 2 * intermediate_size], the gate's half first
//   returns  [..., intermediate_size] in gate_up's dtype
mx::array silu_and_mul(const mx::array& gate_up);
mx::array silu_and_mul_fallback(const mx::array& gate_up);
// By one kernel, which MLX's compiler makes; for GPUs.
mx::array silu_and_mul_compiled(const mx::array& gate_up);

}  // namespace vllm_metal
