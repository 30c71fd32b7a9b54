// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "files/gguf.h"

namespace vllm_metal {

// The group size of MLX's affine quantisation that GGML's blocks become.
inline constexpr int kGgmlGroupSize = 32;

// Bits of an element: 4 for Q4_0 and Q4_1, 8 for Q8_0; 0 for a type that is not quantised.
int quantized_bits(GgmlType type);

// One row in MLX's affine form: element i of group g is `scales[g] * q + biases[g]`, where q is
// the unsigned number in the bits i * bits of the group's words, lowest bits first.
struct AffineRow {
  std::span<uint32_t> weight;  // [columns * bits / 32]
  std::span<uint16_t> scales;  // [columns / 32], float16
  std::span<uint16_t> biases;  // [columns / 32], float16
};

// Repacks a row of GGML blocks without any rounding:
//   Q4_0  d * (q - 8)         scale d, bias -8 d
//   Q4_1  d * q + m           scale d, bias m
//   Q8_0  d * q, q signed     scale d, bias -128 d, stored q + 128
// Throws std::invalid_argument when a scale is not finite or a bias exceeds float16.
void repack_row(GgmlType type, std::span<const std::byte> blocks, const AffineRow& row);

}  // namespace vllm_metal
