// SPDX-License-Identifier: Apache-2.0
// Matrices for the tests of linear, and the products in float64 that they are held against.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/kernel_test.h"
#include "kernels/linear.h"
#include "selftest/quantized_inputs.h"

namespace vllm_metal::testing_support {

using selftest::random_quantized;

// What a product may differ from float64 by: `sum` times the sum of the absolute products, for
// adding up in float32, and `rounding` times the result, for the result's dtype. The fallbacks, of
// MLX's own ops, also round on the way.
struct ProductTolerance {
  mx::Dtype dtype;
  double sum;
  double rounding;
  double fallback_sum;
};

inline const ProductTolerance kProductTolerances[] = {
    {mx::float32, 1e-6, 0x1p-24, 4e-6},
    {mx::float16, 1e-6, 0x1p-11, 8e-3},
    {mx::bfloat16, 1e-6, 0x1p-8, 6e-2},
};

inline const ProductTolerance& product_tolerance_of(mx::Dtype dtype) {
  for (const auto& tolerance : kProductTolerances)
    if (tolerance.dtype == dtype) return tolerance;
  throw std::invalid_argument("no tolerance for this dtype");
}

// A matrix of float64 values.
struct Matrix {
  int64_t rows;
  int64_t columns;
  std::vector<double> values;  // [rows, columns]

  double at(int64_t row, int64_t column) const { return values[row * columns + column]; }
};

inline Matrix matrix_of(const mx::array& x) {
  const int64_t columns = x.shape(-1);
  return {columns == 0 ? 0 : static_cast<int64_t>(x.size()) / columns, columns, values_of(x)};
}

// A quantised matrix read bit by bit.
struct Dequantized {
  Matrix values;
  Matrix magnitudes;  // |scale * q| + |bias|: what rounding errors are in proportion to
};

inline Dequantized dequantize(const QuantizedMatrix& matrix) {
  mx::array weight = mx::contiguous(matrix.weight);
  mx::eval(weight);
  const uint32_t* words = weight.data<uint32_t>();
  const Matrix scales = matrix_of(matrix.scales), biases = matrix_of(matrix.biases);
  const int64_t rows = matrix.out_features(), columns = matrix.in_features();
  Dequantized result{{rows, columns, {}}, {rows, columns, {}}};
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      int q = 0;
      for (int i = 0; i < matrix.bits; ++i) {
        const int64_t bit = column * matrix.bits + i;
        q |= (words[row * weight.shape(1) + bit / 32] >> (bit % 32) & 1) << i;
      }
      const int64_t group = column / matrix.group_size;
      const double scaled = scales.at(row, group) * q, bias = biases.at(row, group);
      result.values.values.push_back(scaled + bias);
      result.magnitudes.values.push_back(std::abs(scaled) + std::abs(bias));
    }
  }
  return result;
}

// Packed weights meet many tokens of bfloat16 as bfloat16 themselves where the processor multiplies
// that (see packed_linear).
inline bool rounds_packed_weights(mx::Dtype dtype, int64_t num_tokens) {
  return cpu::current_isa() == cpu::Isa::kAvx512Bf16 && dtype == mx::bfloat16 && num_tokens > 16;
}

// Each value as the float32 and then the bfloat16 next to it.
inline Matrix rounded_to_bfloat16(Matrix matrix) {
  for (auto& value : matrix.values)
    value = static_cast<float>(mx::bfloat16_t(static_cast<float>(value)));
  return matrix;
}

// The first element of `actual` that is further from x · weightᵀ + bias than its dtype may be;
// empty: none. `magnitudes` are those of the weight's elements.
inline std::string first_error(const mx::array& actual, const mx::array& x, const Matrix& weight,
                               const Matrix& magnitudes, const std::vector<double>& bias = {}) {
  const Matrix in = matrix_of(x);
  const std::vector<double> out = values_of(actual);
  const ProductTolerance& tolerance = product_tolerance_of(actual.dtype());
  for (int64_t row = 0; row < in.rows; ++row) {
    for (int64_t feature = 0; feature < weight.rows; ++feature) {
      double expected = bias.empty() ? 0.0 : bias[feature];
      double magnitude = std::abs(expected);
      for (int64_t i = 0; i < weight.columns; ++i) {
        expected += in.at(row, i) * weight.at(feature, i);
        magnitude += std::abs(in.at(row, i)) * magnitudes.at(feature, i);
      }
      const double value = out[row * weight.rows + feature];
      const double allowed =
          tolerance.sum * magnitude + tolerance.rounding * std::abs(expected) + 0x1p-24;
      if (!(std::abs(value - expected) <= allowed)) {
        return "element (" + std::to_string(row) + ", " + std::to_string(feature) + ") is " +
               std::to_string(value) + ", expected " + std::to_string(expected) + " within " +
               std::to_string(allowed);
      }
    }
  }
  return "";
}

inline Matrix absolute(Matrix matrix) {
  for (auto& value : matrix.values) value = std::abs(value);
  return matrix;
}

inline const std::vector<mx::Dtype> kDtypes = {mx::float32, mx::float16, mx::bfloat16};
inline const std::vector<int> kTokenCounts = {1, 2, 3, 5, 8, 9, 16, 17, 64};

// Runs each test with the kernels of one instruction set.
class LinearKernelTest : public KernelTest, public ::testing::WithParamInterface<cpu::Isa> {
 protected:
  LinearKernelTest() { cpu::set_isa(GetParam()); }
};

inline void expect_near(const mx::array& actual, const mx::array& expected, double tolerance) {
  ASSERT_EQ(actual.dtype(), expected.dtype());
  ASSERT_EQ(actual.shape(), expected.shape());
  expect_close(actual, values_of(expected), {tolerance, tolerance});
}

}  // namespace vllm_metal::testing_support
