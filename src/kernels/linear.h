// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "common/mlx.h"

namespace vllm_metal {

// x · weightᵀ (+ bias). One node on a device with a kernel.
//   x        [..., in_features], float32, float16 or bfloat16
//   weight   [out_features, in_features], one of the same three dtypes
//   bias     [out_features]
//   returns  [..., out_features] in x's dtype; products are summed in float32
// Throws std::invalid_argument when the shapes do not fit.
mx::array linear(const mx::array& x, const mx::array& weight,
                 const std::optional<mx::array>& bias = std::nullopt);
mx::array linear_fallback(const mx::array& x, const mx::array& weight,
                          const std::optional<mx::array>& bias = std::nullopt);

// A matrix in MLX's affine quantisation: element (r, c) is
// scales[r, c / group_size] * q + biases[r, c / group_size], q of `bits` bits, packed from the
// least significant bit of little-endian uint32 words, values crossing words where
// bits does not divide 32.
struct QuantizedMatrix {
  mx::array weight;  // uint32 [out_features, in_features * bits / 32]
  mx::array scales;  // [out_features, in_features / group_size], float32, float16 or bfloat16
  mx::array biases;  // as scales
  int group_size;
  int bits;  // 2, 3, 4, 5, 6 or 8

  int out_features() const { return weight.shape(0); }
  int in_features() const { return scales.shape(1) * group_size; }
};

// As linear, with the weight kept quantised; activations are never quantised. The result has x's
// dtype whatever the scales' (MLX's own quantized_matmul promotes).
mx::array quantized_linear(const mx::array& x, const QuantizedMatrix& weight,
                           const std::optional<mx::array>& bias = std::nullopt);
mx::array quantized_linear_fallback(const mx::array& x, const QuantizedMatrix& weight,
                                    const std::optional<mx::array>& bias = std::nullopt);

// Rows `ids` of a quantised matrix, dequantised: [num_ids, in_features] of `dtype`.
//   ids  int32 [num_ids]
mx::array quantized_rows(const QuantizedMatrix& matrix, const mx::array& ids, mx::Dtype dtype);

}  // namespace vllm_metal
