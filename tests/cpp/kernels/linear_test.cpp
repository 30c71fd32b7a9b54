// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/primitives.h>

#include <functional>
#include <optional>
#include <vector>

#include "common/text.h"
#include "kernels/device_kernels.h"
#include "kernels/linear_reference.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

class LinearTest : public LinearKernelTest {};

INSTANTIATE_TEST_SUITE_P(Isas, LinearTest, ::testing::ValuesIn(cpu::supported_isas()),
                         [](const auto& info) { return cpu::name_of(info.param); });

std::string dense_error(const mx::array& x, const mx::array& weight,
                        const std::optional<mx::array>& bias = std::nullopt) {
  const mx::array y = linear(x, weight, bias);
  if (y.dtype() != x.dtype()) return text("dtype ", y.dtype(), " instead of ", x.dtype());
  mx::Shape shape = x.shape();
  shape.back() = weight.shape(0);
  if (y.shape() != shape) return text("shape ", y.shape(), " instead of ", shape);
  const Matrix values = matrix_of(weight);
  return first_error(y, x, values, absolute(values),
                     bias ? values_of(*bias) : std::vector<double>());
}

TEST_P(LinearTest, DenseOfEveryDtypePair) {
  for (mx::Dtype x_dtype : kDtypes) {
    for (mx::Dtype weight_dtype : kDtypes) {
      for (int num_tokens : kTokenCounts) {
        SCOPED_TRACE(text(x_dtype, " by ", weight_dtype, ", ", num_tokens, " tokens"));
        const mx::array x = random_array({num_tokens, 72}, x_dtype, 1);
        const mx::array weight = random_array({53, 72}, weight_dtype, 2);
        const mx::array bias = random_array({53}, weight_dtype, 3);
        EXPECT_EQ(dense_error(x, weight), "");
        EXPECT_EQ(dense_error(x, weight, bias), "");
      }
    }
  }
}

TEST_P(LinearTest, DenseOfOddSizes) {
  for (int in_features : {1, 3, 15, 17, 33, 639, 641, 1300}) {
    for (int out_features : {1, 2, 5, 12, 13, 47, 49}) {
      for (int num_tokens : {1, 3, 7, 19, 33}) {
        SCOPED_TRACE(text(num_tokens, " x ", in_features, " x ", out_features));
        const mx::array x = random_array({num_tokens, in_features}, mx::float32, 4);
        const mx::array weight = random_array({out_features, in_features}, mx::bfloat16, 5);
        EXPECT_EQ(dense_error(x, weight), "");
      }
    }
  }
}

TEST_P(LinearTest, DenseOfManyTokens) {
  for (int num_tokens : {511, 512, 513, 1041}) {
    SCOPED_TRACE(num_tokens);
    const mx::array x = random_array({num_tokens, 40}, mx::bfloat16, 6);
    const mx::array weight = random_array({61, 40}, mx::float16, 7);
    EXPECT_EQ(dense_error(x, weight, random_array({61}, mx::float32, 8)), "");
  }
}

TEST_P(LinearTest, XOfAnyRank) {
  const mx::array weight = random_array({24, 32}, mx::float32, 9);
  EXPECT_EQ(dense_error(random_array({32}, mx::float32, 10), weight), "");
  EXPECT_EQ(dense_error(random_array({2, 3, 32}, mx::float32, 11), weight), "");
  EXPECT_EQ(dense_error(random_array({2, 1, 3, 5, 32}, mx::float32, 12), weight), "");
}

TEST_P(LinearTest, StridedViews) {
  const mx::array weight = random_array({20, 24}, mx::float32, 13);
  const mx::array square = random_array({24, 24}, mx::float32, 14);
  const mx::array wide = random_array({24, 100}, mx::float32, 15);
  const mx::array columns = mx::slice(wide, {0, 10}, {24, 34});
  const mx::array every_other = mx::slice(wide, {0, 0}, {24, 48}, {1, 2});
  const mx::array repeated = mx::broadcast_to(random_array({1, 24}, mx::float32, 16), {9, 24});
  const mx::array deep = mx::transpose(random_array({3, 24, 7}, mx::float32, 17), {2, 0, 1});
  for (const mx::array& x : {mx::transpose(square), columns, every_other, repeated, deep}) {
    EXPECT_EQ(dense_error(x, weight), "");
  }
  const mx::array x = random_array({5, 24}, mx::float32, 18);
  for (const mx::array& view : {mx::transpose(square), columns, every_other, repeated}) {
    EXPECT_EQ(dense_error(x, view), "");
  }
  const mx::array bias = mx::slice(random_array({40}, mx::float32, 19), {1}, {40}, {2});
  EXPECT_EQ(dense_error(x, weight, bias), "");
  EXPECT_EQ(dense_error(x, weight, mx::broadcast_to(mx::array(0.5f), {20})), "");
}

TEST_P(LinearTest, NoTokensAndNoFeatures) {
  const mx::array no_tokens = mx::zeros({0, 16});
  EXPECT_EQ(linear(no_tokens, mx::zeros({8, 16})).shape(), mx::Shape({0, 8}));
  mx::array y = linear(no_tokens, mx::zeros({8, 16}), mx::zeros({8}));
  mx::eval(y);
  EXPECT_EQ(y.size(), 0);
  y = linear(mx::zeros({3, 16}), mx::zeros({0, 16}));
  mx::eval(y);
  EXPECT_EQ(y.shape(), mx::Shape({3, 0}));
  EXPECT_THAT(values_of(linear(mx::zeros({2, 0}), mx::zeros({3, 0}))),
              ::testing::ElementsAre(0.0, 0, 0, 0, 0, 0));
}

TEST_P(LinearTest, InfinityAndNaNReachOnlyTheirRow) {
  for (int num_tokens : {4, 40}) {
    std::vector<float> values(num_tokens * 48, 1.0f);
    values[1 * 48 + 7] = INFINITY;
    values[2 * 48 + 9] = NAN;
    const mx::array x(values.begin(), {num_tokens, 48}, mx::float32);
    const Matrix y = matrix_of(linear(x, mx::ones({5, 48})));
    for (int feature = 0; feature < 5; ++feature) {
      EXPECT_EQ(y.at(0, feature), 48.0);
      EXPECT_EQ(y.at(1, feature), INFINITY);
      EXPECT_TRUE(std::isnan(y.at(2, feature)));
      EXPECT_EQ(y.at(3, feature), 48.0);
    }
  }
}

TEST_P(LinearTest, DenseAgreesWithTheFallback) {
  for (mx::Dtype x_dtype : kDtypes) {
    for (mx::Dtype weight_dtype : kDtypes) {
      SCOPED_TRACE(text(x_dtype, " by ", weight_dtype));
      const mx::array weight = random_array({30, 64}, weight_dtype, 32);
      const mx::array bias = random_array({30}, mx::float32, 33);
      for (const mx::Shape& shape : {mx::Shape{64}, mx::Shape{3, 64}, mx::Shape{2, 20, 64}}) {
        const mx::array x = random_array(shape, x_dtype, 34);
        const double tolerance = fallback_tolerance_of(x_dtype).relative;
        expect_near(linear(x, weight), linear_fallback(x, weight), tolerance);
        expect_near(linear(x, weight, bias), linear_fallback(x, weight, bias), tolerance);
      }
    }
  }
}

TEST_P(LinearTest, KernelsCanBeTurnedOff) {
  const mx::array x = random_array({2, 16}, mx::float32, 38);
  const mx::array weight = random_array({4, 16}, mx::float32, 39);
  EXPECT_STREQ(linear(x, weight).primitive().name(), "Linear");
  set_device_kernels_enabled(false);
  EXPECT_STRNE(linear(x, weight).primitive().name(), "Linear");
  EXPECT_EQ(dense_error(x, weight), "");
}

TEST(LinearErrors, NameTheArgument) {
  const auto of = [](const mx::array& x, const mx::array& weight,
                     const std::optional<mx::array>& bias = std::nullopt) {
    return message_of<std::invalid_argument>([&] { linear(x, weight, bias); });
  };
  const mx::array x = mx::zeros({2, 72}), weight = mx::zeros({8, 72});
  EXPECT_EQ(of(x, mx::zeros({8, 64})), "[linear] weight has 64 input features but x has 72.");
  EXPECT_EQ(of(mx::array(1.0f), weight), "[linear] x must have a dimension.");
  EXPECT_THAT(of(x, mx::zeros({8, 72, 1})), ::testing::HasSubstr("weight must have 2 dimensions"));
  EXPECT_THAT(of(mx::zeros({2, 72}, mx::int32), weight), ::testing::HasSubstr("x must be float32"));
  EXPECT_THAT(of(x, mx::zeros({8, 72}, mx::uint8)), ::testing::HasSubstr("weight must be float32"));
  EXPECT_THAT(of(x, weight, mx::zeros({9})), ::testing::HasSubstr("bias must have shape (8)"));
  EXPECT_THAT(of(x, weight, mx::zeros({8}, mx::int32)),
              ::testing::HasSubstr("bias must be float32"));
  EXPECT_THAT(message_of<std::invalid_argument>([&] { linear_fallback(x, mx::zeros({8, 64})); }),
              ::testing::HasSubstr("64 input features"));
}

TEST(Isa, OnlySupportedOnesCanBeChosen) {
  const auto isas = cpu::supported_isas();
  EXPECT_EQ(isas.back(), cpu::Isa::kBaseline);
  EXPECT_EQ(cpu::current_isa(), isas.front());
  for (cpu::Isa isa : isas) {
    cpu::set_isa(isa);
    EXPECT_EQ(cpu::current_isa(), isa);
  }
  cpu::set_isa(isas.front());
  for (cpu::Isa isa : {cpu::Isa::kAvx2, cpu::Isa::kAvx512}) {
    if (std::find(isas.begin(), isas.end(), isa) != isas.end()) continue;
    EXPECT_THROW(cpu::set_isa(isa), std::invalid_argument);
  }
}

}  // namespace
}  // namespace vllm_metal
