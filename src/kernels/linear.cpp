// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/cpu/linear.h"
#include "kernels/device_kernels.h"
#include "kernels/linear_checks.h"

namespace vllm_metal {

namespace {

void check_dense(const mx::array& x, const mx::array& weight,
                 const std::optional<mx::array>& bias) {
  check_floating("linear", "weight", weight);
  check_rank("linear", "weight", weight, 2);
  check_activations("linear", x, weight.shape(1), weight.shape(0), bias);
}

void check_quantized(const mx::array& x, const QuantizedMatrix& weight,
                     const std::optional<mx::array>& bias) {
  check_quantized_matrix("quantized_linear", weight);
  check_activations("quantized_linear", x, weight.in_features(), weight.out_features(), bias);
}

void check_rows(const QuantizedMatrix& matrix, const mx::array& ids, mx::Dtype dtype) {
  check_quantized_matrix("quantized_rows", matrix);
  check_row_ids("quantized_rows", matrix.out_features(), ids, dtype);
}

// Whether MLX's own ops know the format.
bool mlx_supports(const QuantizedMatrix& matrix) {
  return matrix.group_size == 32 || matrix.group_size == 64 || matrix.group_size == 128;
}

mx::array int32_array(const std::vector<int32_t>& values) {
  return mx::array(values.begin(), {static_cast<int>(values.size())}, mx::int32);
}

// The packed values, one a column: uint32 [rows, in_features]. A value lies in one word, or in
// the upper bits of one and the lower bits of the next.
mx::array unpacked(const QuantizedMatrix& matrix) {
  const int num_words = matrix.weight.shape(1);
  std::vector<int32_t> low_words, high_words, low_shifts, high_shifts;
  for (int64_t column = 0; column < matrix.in_features(); ++column) {
    const int64_t bit = column * matrix.bits;
    low_words.push_back(static_cast<int32_t>(bit / 32));
    high_words.push_back(std::min(low_words.back() + 1, num_words - 1));
    low_shifts.push_back(static_cast<int32_t>(bit % 32));
    high_shifts.push_back(31 - low_shifts.back());  // and one more: a shift by 32 is undefined
  }
  const auto shift = [](const std::vector<int32_t>& shifts) {
    return mx::astype(int32_array(shifts), mx::uint32);
  };
  const mx::array low =
      mx::right_shift(mx::take(matrix.weight, int32_array(low_words), 1), shift(low_shifts));
  const mx::array high = mx::left_shift(
      mx::left_shift(mx::take(matrix.weight, int32_array(high_words), 1), shift(high_shifts)),
      mx::array(1u));
  return mx::bitwise_and(mx::bitwise_or(low, high), mx::array((1u << matrix.bits) - 1u));
}

// float32 [rows, in_features].
mx::array dequantized(const QuantizedMatrix& matrix) {
  const mx::array scales = mx::astype(matrix.scales, mx::float32);
  const mx::array biases = mx::astype(matrix.biases, mx::float32);
  if (mlx_supports(matrix)) {
    return mx::dequantize(matrix.weight, scales, biases, matrix.group_size, matrix.bits);
  }
  const mx::array groups = mx::reshape(mx::astype(unpacked(matrix), mx::float32),
                                       {matrix.out_features(), scales.shape(1), matrix.group_size});
  const mx::array values = groups * mx::expand_dims(scales, 2) + mx::expand_dims(biases, 2);
  return mx::reshape(values, {matrix.out_features(), matrix.in_features()});
}

mx::array dense_product(const mx::array& x, const mx::array& weight,
                        const std::optional<mx::array>& bias) {
  const mx::array transposed = mx::transpose(weight);
  if (!bias) return mx::astype(mx::matmul(x, transposed), x.dtype());
  // In the dtype of the product: a wider bias must not make MLX convert the weight.
  const mx::Dtype dtype = mx::promote_types(x.dtype(), weight.dtype());
  return mx::astype(mx::addmm(mx::astype(*bias, dtype), x, transposed), x.dtype());
}

mx::array quantized_product(const mx::array& x, const QuantizedMatrix& weight,
                            const std::optional<mx::array>& bias) {
  mx::array product = mx::quantized_matmul(x, weight.weight, weight.scales, weight.biases,
                                           /* transpose */ true, weight.group_size, weight.bits);
  if (bias) product = product + mx::astype(*bias, product.dtype());
  return mx::astype(product, x.dtype());
}

mx::array rows_fallback(const QuantizedMatrix& matrix, const mx::array& ids, mx::Dtype dtype) {
  const QuantizedMatrix rows{.weight = mx::take(matrix.weight, ids, 0),
                             .scales = mx::take(matrix.scales, ids, 0),
                             .biases = mx::take(matrix.biases, ids, 0),
                             .group_size = matrix.group_size,
                             .bits = matrix.bits};
  return mx::astype(dequantized(rows), dtype);
}

}  // namespace

mx::array linear(const mx::array& x, const mx::array& weight,
                 const std::optional<mx::array>& bias) {
  check_dense(x, weight, bias);
  if (use_cpu_kernels() && x.shape(-1) > 0) return cpu::linear(x, weight, bias);
  return dense_product(x, weight, bias);
}

mx::array linear_fallback(const mx::array& x, const mx::array& weight,
                          const std::optional<mx::array>& bias) {
  check_dense(x, weight, bias);
  return dense_product(x, weight, bias);
}

mx::array quantized_linear(const mx::array& x, const QuantizedMatrix& weight,
                           const std::optional<mx::array>& bias) {
  check_quantized(x, weight, bias);
  if (use_cpu_kernels() && x.shape(-1) > 0) return cpu::quantized_linear(x, weight, bias);
  return quantized_linear_fallback(x, weight, bias);
}

mx::array quantized_linear_fallback(const mx::array& x, const QuantizedMatrix& weight,
                                    const std::optional<mx::array>& bias) {
  check_quantized(x, weight, bias);
  if (!mlx_supports(weight)) return dense_product(x, dequantized(weight), bias);
  return quantized_product(x, weight, bias);
}

mx::array quantized_rows(const QuantizedMatrix& matrix, const mx::array& ids, mx::Dtype dtype) {
  check_rows(matrix, ids, dtype);
  if (use_cpu_kernels()) return cpu::quantized_rows(matrix, ids, dtype);
  return rows_fallback(matrix, ids, dtype);
}

}  // namespace vllm_metal
