// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of kernels/linear.h: one graph node each. Arguments have been checked.
#pragma once

#include "kernels/linear.h"

namespace vllm_metal::cpu {

mx::array linear(const mx::array& x, const mx::array& weight, const std::optional<mx::array>& bias);
mx::array quantized_linear(const mx::array& x, const QuantizedMatrix& weight,
                           const std::optional<mx::array>& bias);
mx::array quantized_rows(const QuantizedMatrix& matrix, const mx::array& ids, mx::Dtype dtype);

}  // namespace vllm_metal::cpu
