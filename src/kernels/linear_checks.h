// SPDX-License-Identifier: Apache-2.0
// Checks of the arguments of matrix products; see checks.h.
#pragma once

#include <optional>

#include "kernels/checks.h"
#include "kernels/linear.h"

namespace vllm_metal {

// x [..., in_features] and bias [out_features] fit a weight.
void check_activations(const char* op, const mx::array& x, int in_features, int out_features,
                       const std::optional<mx::array>& bias);

// The parts of the matrix fit each other.
void check_quantized_matrix(const char* op, const QuantizedMatrix& matrix);

// ids int32 [num_ids] of rows of a matrix, to be returned in `dtype`.
void check_row_ids(const char* op, int num_rows, const mx::array& ids, mx::Dtype dtype);

}  // namespace vllm_metal
