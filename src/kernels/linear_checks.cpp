// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear_checks.h"

#include <algorithm>
#include <array>
#include <stdexcept>

#include "common/text.h"

namespace vllm_metal {

namespace {

constexpr std::array<int, 6> kBits = {2, 3, 4, 5, 6, 8};

}  // namespace

void check_activations(const char* op, const mx::array& x, int in_features, int out_features,
                       const std::optional<mx::array>& bias) {
  check_floating(op, "x", x);
  if (x.ndim() == 0) throw std::invalid_argument(text("[", op, "] x must have a dimension."));
  if (x.shape(-1) != in_features) {
    throw std::invalid_argument(text("[", op, "] weight has ", in_features,
                                     " input features but x has ", x.shape(-1), "."));
  }
  if (!bias) return;
  check_floating(op, "bias", *bias);
  check_shape(op, "bias", *bias, {out_features});
}

void check_quantized_matrix(const char* op, const QuantizedMatrix& matrix) {
  if (std::find(kBits.begin(), kBits.end(), matrix.bits) == kBits.end()) {
    throw std::invalid_argument(
        text("[", op, "] bits must be one of ", join(kBits), " but is ", matrix.bits, "."));
  }
  if (matrix.group_size <= 0) {
    throw std::invalid_argument(
        text("[", op, "] group_size must be positive but is ", matrix.group_size, "."));
  }
  check_rank(op, "weight", matrix.weight, 2);
  if (matrix.weight.dtype() != mx::uint32) {
    throw std::invalid_argument(
        text("[", op, "] weight must be uint32 but is ", matrix.weight.dtype(), "."));
  }
  check_floating(op, "scales", matrix.scales);
  check_rank(op, "scales", matrix.scales, 2);
  check_shape(op, "scales", matrix.scales, {matrix.out_features(), matrix.scales.shape(1)});
  check_shape(op, "biases", matrix.biases, matrix.scales.shape());
  check_same_dtype(op, "biases", matrix.biases, "scales", matrix.scales);
  const int64_t scaled_bits = int64_t{matrix.in_features()} * matrix.bits;
  if (int64_t{matrix.weight.shape(1)} * 32 != scaled_bits) {
    throw std::invalid_argument(text("[", op, "] weight has rows of ", matrix.weight.shape(1),
                                     " words, but ", matrix.scales.shape(1),
                                     " scales with groups of ", matrix.group_size, " values of ",
                                     matrix.bits, " bits make ", scaled_bits, " bits."));
  }
}

void check_row_ids(const char* op, int num_rows, const mx::array& ids, mx::Dtype dtype) {
  check_rank(op, "ids", ids, 1);
  if (num_rows == 0 && ids.size() > 0) {
    throw std::invalid_argument(text("[", op, "] the matrix has no rows to take."));
  }
  if (ids.dtype() != mx::int32) {
    throw std::invalid_argument(text("[", op, "] ids must be int32 but is ", ids.dtype(), "."));
  }
  if (dtype != mx::float32 && dtype != mx::float16 && dtype != mx::bfloat16) {
    throw std::invalid_argument(
        text("[", op, "] dtype must be float32, float16 or bfloat16 but is ", dtype, "."));
  }
}

}  // namespace vllm_metal
