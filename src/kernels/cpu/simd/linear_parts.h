// SPDX-License-Identifier: Apache-2.0
// The parts that linear_kernels is put together from, one source file each.
#pragma once

#include "kernels/cpu/simd/linear.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

// Weights of 2, 4 or 8 bits in groups of whole words.
bool is_word_aligned(const WeightRows& weight);
extern const StreamingKernels words_kernels;

// Weights of every other form.
extern const StreamingKernels rows_kernels;

extern const BlockedKernels blocked_kernels;

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
