// SPDX-License-Identifier: Apache-2.0
// The parts that linear_kernels is put together from, one source file each.
#pragma once

#include "kernels/cpu/simd/linear.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

extern const StreamingKernels strips_kernels;

// Weights by rows, dense and quantised.
extern const StreamingKernels rows_kernels;

extern const BlockedKernels blocked_kernels;

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
