// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include "kernels/gpu/kernel_launch.h"

namespace vllm_metal::gpu {

// The kernel on the current device, compiled the first time that it is asked for. For any thread.
// Throws std::runtime_error with the compiler's log when it does not compile.
CUfunction compiled_kernel(const KernelName& name);

}  // namespace vllm_metal::gpu
