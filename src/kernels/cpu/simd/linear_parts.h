// SPDX-License-Identifier: Apache-2.0
// The parts that linear_kernels is put together from, one source file each.
#pragma once

#include "kernels/cpu/simd/linear.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

// For a weight in strips and activations of that type.
const StreamingKernels& strips_kernels(ElementType activations);

// Up to here streaming weights by rows is faster than blocks, which waste the lanes of absent
// tokens.
constexpr int64_t kMaxStreamingTokens = 16;

// Weights by rows, dense and quantised.
extern const StreamingKernels rows_kernels;

const BlockedKernels& blocked_kernels(const WeightRows& weight, ElementType activations);

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
