// SPDX-License-Identifier: Apache-2.0
// Device memory for outputs. MLX's function for it is not exported, and what is (the allocator
// behind mx::allocator::malloc) gives managed memory.
#pragma once

#include <cuda.h>

#include "common/mlx.h"

namespace vllm_metal::gpu {

// Gives `output` (row contiguous) device memory that may be used from now on in the order of
// `stream`, that of earlier outputs if there is some.
void allocate_on_device(mx::array& output, int device, CUstream stream);

}  // namespace vllm_metal::gpu
