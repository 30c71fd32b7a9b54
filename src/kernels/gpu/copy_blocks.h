// SPDX-License-Identifier: Apache-2.0
// The GPU kernel of kernels/copy_blocks.h, which checks the arguments.
#pragma once

#include <vector>

#include "kernels/copy_blocks.h"

namespace vllm_metal::gpu {

void copy_blocks(mx::array& keys, mx::array& values, const std::vector<BlockCopy>& copies,
                 int block_size);

}  // namespace vllm_metal::gpu
