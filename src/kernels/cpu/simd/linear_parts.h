// SPDX-License-Identifier: Apache-2.0
// The parts that linear_kernels is put together from, one source file each.
#pragma once

#include "kernels/cpu/simd/linear.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

// For weights in strips and activations of that type.
const StreamingKernels& strips_kernels(ElementType activations);
const BlockedKernels& strip_blocks_kernels(ElementType activations);

// Up to here streaming the weights is faster than blocks, which dequantise them first, or waste the
// lanes of absent tokens.
constexpr int64_t kMaxStreamingTokens = 16;

// Weights by rows, dense and quantised.
extern const StreamingKernels rows_kernels;

const BlockedKernels& row_blocks_kernels(const WeightRows& weight, ElementType activations);

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
