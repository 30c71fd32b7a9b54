// SPDX-License-Identifier: Apache-2.0
// The GPU kernel of add_rms_norm in kernels/rms_norm.h, which checks the arguments.
#pragma once

#include <utility>

#include "common/mlx.h"
#include "kernels/gpu/kernel_launch.h"

namespace vllm_metal::gpu {

KernelUse norm_kernel(mx::Dtype dtype);

// Whether the device takes the kernel for this dtype (see kernel_guard.h).
bool has_norm_kernel(mx::Dtype dtype);

std::pair<mx::array, mx::array> add_rms_norm(const mx::array& x, const mx::array& residual,
                                             const mx::array& weight, float eps);

}  // namespace vllm_metal::gpu
