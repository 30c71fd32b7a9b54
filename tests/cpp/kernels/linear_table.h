// SPDX-License-Identifier: Apache-2.0
// Weights of every form that linear and quantized_linear accept, for tables of tests.
#pragma once

#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "common/text.h"
#include "kernels/linear_reference.h"
#include "kernels/packed_linear.h"
#include "kernels/table_cases.h"

namespace vllm_metal::testing_support {

// Groups that models have (16, 32, 64, 128), and odd ones: single values, groups that end inside a
// word, and whose values do not fill the registers.
inline const std::vector<int> kGroupSizes = {1, 7, 12, 16, 24, 32, 40, 64, 128};

struct WeightFormat {
  int bits;  // 0: dense
  mx::Dtype dtype;
  int group_size;  // 0: dense
};

inline std::string text_of(const WeightFormat& format) {
  if (format.bits == 0) return text_of(format.dtype);
  return text(format.bits, " bits, groups of ", format.group_size, ", scales of ", format.dtype);
}

// The name of a test for an instruction set and bits, 0 for dense weights.
inline std::string name_of_isa_and_bits(
    const ::testing::TestParamInfo<std::tuple<cpu::Isa, int>>& info) {
  const auto [isa, bits] = info.param;
  return text(cpu::name_of(isa), "_", bits == 0 ? "dense" : text(bits, "_bits"));
}

inline std::vector<WeightFormat> formats_of(int bits) {
  std::vector<WeightFormat> formats;
  for (mx::Dtype dtype : kDtypes) {
    if (bits == 0) formats.push_back({0, dtype, 0});
    for (int group_size : bits == 0 ? std::vector<int>{} : kGroupSizes)
      formats.push_back({bits, dtype, group_size});
  }
  return formats;
}

// Widths of rows in this format: whole groups that fill whole words.
inline std::vector<int> widths_of(const WeightFormat& format) {
  if (format.bits == 0) return {1, 7, 17, 33, 129, 576, 643};
  const int groups = 32 / std::gcd(32, format.group_size * format.bits);
  const int least = groups * format.group_size;
  std::vector<int> widths;
  for (int factor : {1, 2, 3, 5, 9, 17})
    if (factor * least <= 700) widths.push_back(factor * least);
  return widths;
}

// A weight and its float64 values.
struct TableWeight {
  std::optional<mx::array> dense;
  std::optional<QuantizedMatrix> quantized;
  std::optional<PackedMatrix> packed;  // where the device has kernels for it
  Matrix values;
  Matrix magnitudes;

  mx::array product(const mx::array& x, const std::optional<mx::array>& bias) const {
    return dense ? linear(x, *dense, bias) : quantized_linear(x, *quantized, bias);
  }
  mx::array fallback(const mx::array& x, const std::optional<mx::array>& bias) const {
    return dense ? linear_fallback(x, *dense, bias)
                 : quantized_linear_fallback(x, *quantized, bias);
  }
};

inline TableWeight make_weight(const WeightFormat& format, int out_features, int in_features,
                               Placement placement) {
  if (format.bits == 0) {
    const mx::array weight = random_array({out_features, in_features}, format.dtype, 50);
    Matrix values = matrix_of(weight);
    Matrix magnitudes = absolute(values);
    return {placed(weight, placement), std::nullopt, std::nullopt, std::move(values),
            std::move(magnitudes)};
  }
  QuantizedMatrix matrix =
      random_quantized(out_features, in_features, format.group_size, format.bits, format.dtype, 51);
  // Small enough that no sum leaves the range of float16.
  matrix.scales =
      matrix.scales * mx::array(1.0f / static_cast<float>(1 << format.bits), format.dtype);
  Dequantized reference = dequantize(matrix);
  for (mx::array* part : {&matrix.weight, &matrix.scales, &matrix.biases})
    *part = placed(*part, placement);
  return {std::nullopt, matrix, pack_for_device(matrix), std::move(reference.values),
          std::move(reference.magnitudes)};
}

// x · weightᵀ + bias in float64, and the sums of the products' magnitudes.
struct ProductReference {
  Matrix values;
  Matrix magnitudes;
};

inline ProductReference product_reference(const mx::array& x, const TableWeight& weight,
                                          const std::optional<mx::array>& bias) {
  const Matrix in = matrix_of(x);
  const std::vector<double> added =
      bias ? values_of(*bias) : std::vector<double>(weight.values.rows, 0.0);
  ProductReference result{{in.rows, weight.values.rows, {}}, {in.rows, weight.values.rows, {}}};
  for (int64_t row = 0; row < in.rows; ++row) {
    for (int64_t feature = 0; feature < weight.values.rows; ++feature) {
      double value = added[feature], magnitude = std::abs(value);
      for (int64_t i = 0; i < in.columns; ++i) {
        value += in.at(row, i) * weight.values.at(feature, i);
        magnitude += std::abs(in.at(row, i)) * weight.magnitudes.at(feature, i);
      }
      result.values.values.push_back(value);
      result.magnitudes.values.push_back(magnitude);
    }
  }
  return result;
}

// The first element that is further from the reference than `sum` times the magnitudes and
// `rounding` times the value; empty: none.
inline std::string first_error(const mx::array& actual, const ProductReference& expected,
                               double sum, double rounding) {
  const std::vector<double> out = values_of(actual);
  if (out.size() != expected.values.values.size()) return text(out.size(), " elements");
  for (size_t i = 0; i < out.size(); ++i) {
    const double value = expected.values.values[i];
    const double allowed =
        sum * expected.magnitudes.values[i] + rounding * std::abs(value) + 0x1p-24;
    if (!(std::abs(out[i] - value) <= allowed))
      return text("element ", i, " is ", out[i], ", expected ", value, " within ", allowed);
  }
  return "";
}

}  // namespace vllm_metal::testing_support
