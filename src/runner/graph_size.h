// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include "common/mlx.h"

namespace vllm_metal {

// Primitives that evaluating `outputs` would run: what a step costs the host. An op with several
// outputs counts once.
size_t graph_size(const std::vector<mx::array>& outputs);

}  // namespace vllm_metal
