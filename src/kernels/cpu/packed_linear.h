// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of kernels/packed_linear.h: one graph node each. Arguments have been checked.
#pragma once

#include "kernels/packed_linear.h"

namespace vllm_metal::cpu {

// PackedMatrix::strips of a matrix.
mx::array pack_strips(const QuantizedMatrix& matrix);

mx::array packed_linear(const mx::array& x, const PackedMatrix& weight,
                        const std::optional<mx::array>& bias);
mx::array packed_rows(const PackedMatrix& matrix, const mx::array& ids, mx::Dtype dtype);

}  // namespace vllm_metal::cpu
