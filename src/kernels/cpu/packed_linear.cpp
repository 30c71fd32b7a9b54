// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/packed_linear.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/cpu/linear_primitive.h"
#include "kernels/cpu/parallel_for.h"

namespace vllm_metal::cpu {

namespace {

// What a PackedMatrix says besides its strips.
struct PackedForm {
  int out_features;
  int in_features;
  Quantization quantization;
  ElementType scales_type;

  static PackedForm of(const PackedMatrix& matrix) {
    return {matrix.out_features,
            matrix.in_features,
            {matrix.group_size, matrix.bits},
            element_type_of(matrix.scales_dtype)};
  }

  WeightRows weight_rows(const mx::array& strips) const {
    return {.out_features = out_features,
            .in_features = in_features,
            .elements = strips.data<void>(),
            .stride = 0,
            .type = scales_type,
            .bits = quantization.bits,
            .group_size = quantization.group_size,
            .in_strips = true};
  }

  bool operator==(const PackedForm&) const = default;
};

// {x, strips[, bias]} -> {x · weightᵀ (+ bias)}
class PackedLinear : public LinearPrimitive {
 public:
  explicit PackedLinear(PackedForm form) : form_(form) {}

  const char* name() const override { return "PackedLinear"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return form_ == static_cast<const PackedLinear&>(other).form_;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {with_last_dimension(inputs[0].shape(), form_.out_features)};
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    eval_product(inputs[0], form_.weight_rows(inputs[1]), inputs.size() == 3 ? &inputs[2] : nullptr,
                 outputs[0]);
  }

 private:
  PackedForm form_;
};

// {ids, strips} -> {dequantised rows}
class PackedRows : public CpuPrimitive {
 public:
  explicit PackedRows(PackedForm form) : form_(form) {}

  const char* name() const override { return "PackedRows"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return form_ == static_cast<const PackedRows&>(other).form_;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {{inputs[0].shape(0), form_.in_features}};
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    mx::array& out = outputs[0];
    allocate_output(out);
    if (out.size() == 0) return;
    const mx::array ids = with_contiguous_last_dimension(inputs[0]);
    dispatch([rows = form_.weight_rows(inputs[1]), ids = ids.data<int32_t>(), num_ids = ids.size(),
              out = out.data<void>(),
              type = element_type_of(out.dtype())] { gather_rows(rows, ids, num_ids, out, type); });
  }

 private:
  PackedForm form_;
};

// Elements of a row-contiguous matrix, copied column by column for 16 rows at a time.
struct StripSource {
  const char* elements;
  int64_t item_size;
  int64_t columns_per_row;
  int64_t columns_per_group;

  // Group `group` of the `num_rows` rows from `row` on, to `target`, whose other rows are left as
  // they are; returns what follows it.
  char* copy_group(int64_t row, int64_t num_rows, int64_t group, char* target) const {
    for (int64_t column = 0; column < columns_per_group; ++column) {
      const char* source =
          elements + (row * columns_per_row + group * columns_per_group + column) * item_size;
      for (int64_t r = 0; r < num_rows; ++r)
        std::memcpy(target + r * item_size, source + r * columns_per_row * item_size, item_size);
      target += kStripRows * item_size;
    }
    return target;
  }
};

StripSource strip_source(const mx::array& matrix, int num_groups) {
  return {matrix.data<char>(), static_cast<int64_t>(matrix.itemsize()), matrix.shape(1),
          matrix.shape(1) / num_groups};
}

// {weight, scales, biases} -> {strips}
class PackStrips : public CpuPrimitive {
 public:
  const char* name() const override { return "PackStrips"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    mx::array& out = outputs[0];
    allocate_output(out);
    if (out.size() == 0) return;
    const int num_groups = out.shape(1);
    std::vector<StripSource> sources;
    for (const mx::array& input : inputs)
      sources.push_back(strip_source(row_contiguous(input), num_groups));
    dispatch([sources, num_groups, num_rows = int64_t{inputs[0].shape(0)},
              num_strips = out.shape(0),
              strip_bytes = static_cast<int64_t>(out.nbytes()) / out.shape(0),
              strips = out.data<char>()] {
      parallel_for(num_strips, 1, [&](int64_t strip, int64_t) {
        char* target = strips + strip * strip_bytes;
        const int64_t row = strip * kStripRows;
        const int64_t count = std::min<int64_t>(kStripRows, num_rows - row);
        if (count < kStripRows) std::memset(target, 0, strip_bytes);
        for (int64_t group = 0; group < num_groups; ++group) {
          for (const StripSource& source : sources)
            target = source.copy_group(row, count, group, target);
        }
      });
    });
  }
};

}  // namespace

mx::array pack_strips(const QuantizedMatrix& matrix) {
  const int num_groups = matrix.scales.shape(1);
  const int num_strips = (matrix.out_features() + kStripRows - 1) / kStripRows;
  const int words_per_row = matrix.group_size * matrix.bits / 32;
  const int scale_words = 2 * static_cast<int>(matrix.scales.itemsize()) * kStripRows / 4;
  return mx::array({num_strips, num_groups, words_per_row * kStripRows + scale_words}, mx::uint32,
                   std::make_shared<PackStrips>(), {matrix.weight, matrix.scales, matrix.biases});
}

mx::array packed_linear(const mx::array& x, const PackedMatrix& weight,
                        const std::optional<mx::array>& bias) {
  return make_product(x, weight.out_features,
                      std::make_shared<PackedLinear>(PackedForm::of(weight)), {x, weight.strips},
                      bias);
}

mx::array packed_rows(const PackedMatrix& matrix, const mx::array& ids, mx::Dtype dtype) {
  return mx::array({ids.shape(0), matrix.in_features}, dtype,
                   std::make_shared<PackedRows>(PackedForm::of(matrix)), {ids, matrix.strips});
}

}  // namespace vllm_metal::cpu
