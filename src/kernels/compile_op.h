// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <vector>

#include "common/mlx.h"

namespace vllm_metal {

// Arrays to arrays, of elementwise ops on inputs of one shape.
using ArrayOp = std::vector<mx::array>(const std::vector<mx::array>&);

// The same as one kernel, which MLX's compiler makes at the first call, for arrays of any length.
// To be called where use_compiled_ops(): on a CPU a C++ compiler would be run.
std::function<ArrayOp> compile_op(ArrayOp* op);

}  // namespace vllm_metal
