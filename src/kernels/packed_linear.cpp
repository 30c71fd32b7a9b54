// SPDX-License-Identifier: Apache-2.0
#include "kernels/packed_linear.h"

#include "kernels/cpu/packed_linear.h"
#include "kernels/device_kernels.h"
#include "kernels/linear_checks.h"

namespace vllm_metal {

namespace {

constexpr int kStripRows = 16;

// Rows in their order: [strips, groups, columns, 16] -> [out_features, groups * columns].
mx::array by_rows(const mx::array& columns, int out_features) {
  const int num_rows = columns.shape(0) * kStripRows;
  const mx::array rows = mx::reshape(mx::transpose(columns, {0, 3, 1, 2}),
                                     {num_rows, columns.shape(1) * columns.shape(2)});
  return mx::contiguous(mx::slice(rows, {0, 0}, {out_features, rows.shape(1)}));
}

}  // namespace

std::optional<PackedMatrix> pack_for_device(const QuantizedMatrix& matrix) {
  check_quantized_matrix("pack_for_device", matrix);
  if (!use_cpu_kernels() || matrix.group_size % 32 != 0) return std::nullopt;
  return PackedMatrix{.strips = cpu::pack_strips(matrix),
                      .scales_dtype = matrix.scales.dtype(),
                      .out_features = matrix.out_features(),
                      .in_features = matrix.in_features(),
                      .group_size = matrix.group_size,
                      .bits = matrix.bits};
}

QuantizedMatrix unpack(const PackedMatrix& matrix) {
  const mx::array& strips = matrix.strips;
  const int num_strips = strips.shape(0), num_groups = strips.shape(1);
  const int num_words = matrix.group_size * matrix.bits / 32;
  const int end_of_words = num_words * kStripRows;
  const mx::array words = mx::slice(strips, {0, 0, 0}, {num_strips, num_groups, end_of_words});
  const mx::array rest =
      mx::slice(strips, {0, 0, end_of_words}, {num_strips, num_groups, strips.shape(2)});
  const mx::array scales = mx::reshape(mx::view(mx::contiguous(rest), matrix.scales_dtype),
                                       {num_strips, num_groups, 2, kStripRows});
  const auto part = [&](int index) {
    return by_rows(
        mx::slice(scales, {0, 0, index, 0}, {num_strips, num_groups, index + 1, kStripRows}),
        matrix.out_features);
  };
  return {.weight = by_rows(mx::reshape(words, {num_strips, num_groups, num_words, kStripRows}),
                            matrix.out_features),
          .scales = part(0),
          .biases = part(1),
          .group_size = matrix.group_size,
          .bits = matrix.bits};
}

mx::array packed_linear(const mx::array& x, const PackedMatrix& weight,
                        const std::optional<mx::array>& bias) {
  if (!use_cpu_kernels()) return packed_linear_fallback(x, weight, bias);
  check_activations("packed_linear", x, weight.in_features, weight.out_features, bias);
  return cpu::packed_linear(x, weight, bias);
}

mx::array packed_linear_fallback(const mx::array& x, const PackedMatrix& weight,
                                 const std::optional<mx::array>& bias) {
  return quantized_linear_fallback(x, unpack(weight), bias);
}

mx::array packed_rows(const PackedMatrix& matrix, const mx::array& ids, mx::Dtype dtype) {
  if (!use_cpu_kernels()) return quantized_rows(unpack(matrix), ids, dtype);
  check_row_ids("packed_rows", matrix.out_features, ids, dtype);
  return cpu::packed_rows(matrix, ids, dtype);
}

}  // namespace vllm_metal
