// SPDX-License-Identifier: Apache-2.0
// Products with weights of every form, of up to 40 tokens, which meets each tile of the streaming
// and the blocked kernels, against float64 and against MLX's own ops.
#include <gtest/gtest.h>

#include <optional>
#include <tuple>
#include <vector>

#include "kernels/linear_table.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

constexpr int kMaxTokens = 40;

// What products are made of, besides the format of the weight.
struct Case {
  mx::Dtype dtype;
  int in_features;
  int out_features;
};

std::string text_of(const WeightFormat& format, const Case& c, Placement placement) {
  return text(testing_support::text_of(format), " [", c.out_features, ", ", c.in_features, "] ",
              testing_support::text_of(placement), ", x of ", c.dtype);
}

class LinearTable : public KernelTest,
                    public ::testing::WithParamInterface<std::tuple<cpu::Isa, int>> {
 protected:
  LinearTable() { cpu::set_isa(std::get<0>(GetParam())); }
  int bits() const { return std::get<1>(GetParam()); }

  // All cases of a format, or some that differ from those of other formats.
  std::vector<Case> cases_of(const WeightFormat& format) {
    std::vector<Case> cases;
    for (mx::Dtype dtype : kDtypes)
      for (int in_features : widths_of(format))
        for (int out_features : kOddSizes) cases.push_back({dtype, in_features, out_features});
    return rotation_.next(cases, 3);
  }

  // All token counts, or the next `count`: each one comes before any comes again.
  std::vector<int> token_counts(int count) {
    constexpr int kStep = 17;  // without a common factor with kMaxTokens
    std::vector<int> counts;
    for (int i = 0; i < (all_cases() ? kMaxTokens : count); ++i)
      counts.push_back(1 + next_count_++ * kStep % kMaxTokens);
    return counts;
  }

  void check(const TableWeight& weight, const Case& c, int num_tokens, Placement placement);

  Rotation rotation_;
  int next_count_ = 0;
};

INSTANTIATE_TEST_SUITE_P(All, LinearTable,
                         ::testing::Combine(::testing::ValuesIn(cpu::supported_isas()),
                                            ::testing::Values(0, 2, 3, 4, 5, 6, 8)),
                         name_of_isa_and_bits);

void LinearTable::check(const TableWeight& weight, const Case& c, int num_tokens,
                        Placement placement) {
  SCOPED_TRACE(text(num_tokens, " tokens, ", testing_support::text_of(placement)));
  const mx::array x = placed(random_array({num_tokens, c.in_features}, c.dtype, 52), placement);
  std::optional<mx::array> bias;
  if (num_tokens % 2 == 0) bias = random_array({c.out_features}, rotation_.next(kDtypes), 53);
  const ProductReference expected = product_reference(x, weight, bias);
  const ProductTolerance& tolerance = product_tolerance_of(c.dtype);
  const mx::array y = weight.product(x, bias);
  ASSERT_EQ(y.dtype(), c.dtype);
  ASSERT_EQ(first_error(y, expected, tolerance.sum, tolerance.rounding), "");
  if (weight.packed) {
    const mx::array packed = packed_linear(x, *weight.packed, bias);
    if (rounds_packed_weights(c.dtype, num_tokens)) {
      TableWeight rounded = weight;
      rounded.values = rounded_to_bfloat16(std::move(rounded.values));
      ASSERT_EQ(first_error(packed, product_reference(x, rounded, bias), tolerance.sum,
                            tolerance.rounding),
                "")
          << "packed, by rounded weights";
      ASSERT_EQ(first_error(packed, expected, 0x1p-9, tolerance.rounding), "") << "packed";
    } else {
      ASSERT_EQ(first_error(packed, expected, tolerance.sum, tolerance.rounding), "") << "packed";
    }
  }
  ASSERT_EQ(
      first_error(weight.fallback(x, bias), expected, tolerance.fallback_sum, tolerance.rounding),
      "")
      << "the fallback";
}

TEST_P(LinearTable, ProductsOfUpTo40Tokens) {
  for (const WeightFormat& format : formats_of(bits())) {
    for (const Case& c : cases_of(format)) {
      const Placement placement = rotation_.next(kPlacements);
      SCOPED_TRACE(text_of(format, c, placement));
      const auto weight = make_weight(format, c.out_features, c.in_features, placement);
      for (int num_tokens : token_counts(bits() == 0 ? 20 : 4)) {  // few formats are dense
        check(weight, c, num_tokens, rotation_.next(kPlacements));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(LinearTable, RowsOfQuantizedMatrices) {
  if (bits() == 0) return;  // dense rows are taken by MLX
  for (const WeightFormat& format : formats_of(bits())) {
    for (const Case& c : cases_of(format)) {
      const Placement placement = rotation_.next(kPlacements);
      SCOPED_TRACE(text_of(format, c, placement));
      const auto weight = make_weight(format, c.out_features, c.in_features, placement);
      std::vector<int32_t> ids;
      for (int i = 0; i < 19; ++i) ids.push_back((i * 31 + 1) % c.out_features);
      const mx::array taken(ids.begin(), {19}, mx::int32);
      ProductReference expected;
      for (int32_t id : ids) {
        for (int i = 0; i < c.in_features; ++i) {
          expected.values.values.push_back(weight.values.at(id, i));
          expected.magnitudes.values.push_back(weight.magnitudes.at(id, i));
        }
      }
      const ProductTolerance& tolerance = product_tolerance_of(c.dtype);
      const mx::array rows = quantized_rows(*weight.quantized, taken, c.dtype);
      ASSERT_EQ(first_error(rows, expected, tolerance.sum, tolerance.rounding), "");
      if (weight.packed) {
        const mx::array packed = packed_rows(*weight.packed, taken, c.dtype);
        ASSERT_EQ(first_error(packed, expected, tolerance.sum, tolerance.rounding), "") << "packed";
      }
      set_device_kernels_enabled(false);
      const mx::array fallback = quantized_rows(*weight.quantized, taken, c.dtype);
      set_device_kernels_enabled(true);
      ASSERT_EQ(first_error(fallback, expected, tolerance.sum, tolerance.rounding), "");
    }
  }
}

}  // namespace
}  // namespace vllm_metal
