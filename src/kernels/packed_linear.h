// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "common/mlx.h"
#include "kernels/linear.h"

namespace vllm_metal {

// A QuantizedMatrix in the order in which the CPU kernels read it: strips of 16 rows, each group
// by group; of a group first its words (word 0 of each row, word 1 of each row, …), then the rows'
// scales, then their biases. The last strip is filled up with zeros.
struct PackedMatrix {
  mx::array strips;        // uint32 [ceil(out_features / 16), groups, words of a group of 16 rows]
  mx::Dtype scales_dtype;  // float32, float16 or bfloat16
  int out_features;
  int in_features;
  int group_size;  // a multiple of 32
  int bits;        // 2, 3, 4, 5, 6 or 8
};

// The matrix in that order where the device has kernels for it; nullopt where they do not know the
// form (group_size) or there are none. The result is not yet computed.
std::optional<PackedMatrix> pack_for_device(const QuantizedMatrix& matrix);

// As quantized_linear and quantized_rows. With more than 16 tokens of bfloat16, a processor that
// multiplies bfloat16 gets the dequantised weights rounded to it, as a matrix stored in bfloat16
// has them: an error of up to 2^-9 of each product.
mx::array packed_linear(const mx::array& x, const PackedMatrix& weight,
                        const std::optional<mx::array>& bias = std::nullopt);
mx::array packed_linear_fallback(const mx::array& x, const PackedMatrix& weight,
                                 const std::optional<mx::array>& bias = std::nullopt);
mx::array packed_rows(const PackedMatrix& matrix, const mx::array& ids, mx::Dtype dtype);

// The matrix that was packed.
QuantizedMatrix unpack(const PackedMatrix& matrix);

}  // namespace vllm_metal
