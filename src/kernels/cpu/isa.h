// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

namespace vllm_metal::cpu {

// Instruction sets that the SIMD sources are compiled for. kBaseline is what every processor of
// the architecture has (SSE2 on x86-64, NEON on arm64). kAvx512Bf16 adds products of bfloat16.
enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

const char* name_of(Isa isa);

// Those that this processor runs, best first.
std::vector<Isa> supported_isas();

// The one in use: the best, or what set_isa chose (tests run every kernel on each).
Isa current_isa();
void set_isa(Isa isa);

}  // namespace vllm_metal::cpu
