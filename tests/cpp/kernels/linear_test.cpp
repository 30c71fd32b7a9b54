// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/primitives.h>

#include <functional>
#include <optional>
#include <vector>

#include "common/text.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/parallel_for.h"
#include "kernels/device_kernels.h"
#include "kernels/linear_reference.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

const std::vector<mx::Dtype> kDtypes = {mx::float32, mx::float16, mx::bfloat16};
const std::vector<int> kTokenCounts = {1, 2, 3, 5, 8, 9, 16, 17, 64};

// Runs each test with the kernels of one instruction set.
class LinearTest : public KernelTest, public ::testing::WithParamInterface<cpu::Isa> {
 protected:
  LinearTest() { cpu::set_isa(GetParam()); }
};

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

std::string quantized_error(const mx::array& x, const QuantizedMatrix& weight,
                            const std::optional<mx::array>& bias = std::nullopt) {
  const mx::array y = quantized_linear(x, weight, bias);
  if (y.dtype() != x.dtype()) return text("dtype ", y.dtype(), " instead of ", x.dtype());
  const Dequantized reference = dequantize(weight);
  return first_error(y, x, reference.values, reference.magnitudes,
                     bias ? values_of(*bias) : std::vector<double>());
}

// ---- Dense ----

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

// ---- Quantised ----

struct QuantizedShape {
  int in_features;
  int group_size;
};

// Groups of the usual sizes, of odd ones (24, 40, 12) and of the whole row.
std::vector<QuantizedShape> shapes_of(int bits) {
  std::vector<QuantizedShape> shapes = {{128, 32}, {576, 32},  {192, 64}, {256, 128},
                                        {96, 24},  {160, 160}, {1440, 40}};
  if (bits == 4) shapes.insert(shapes.end(), {{72, 24}, {40, 8}, {24, 12}, {8, 8}});
  if (bits == 8) shapes.insert(shapes.end(), {{36, 12}, {4, 4}, {20, 20}, {6 * 4, 6}});
  return shapes;
}

TEST_P(LinearTest, QuantizedOfEveryBitsAndGroupSize) {
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (const auto& [in_features, group_size] : shapes_of(bits)) {
      for (int num_tokens : kTokenCounts) {
        SCOPED_TRACE(
            text(bits, " bits, groups of ", group_size, ", ", num_tokens, " x ", in_features));
        const auto weight = random_quantized(27, in_features, group_size, bits, mx::float32, 20);
        const mx::array x =
            random_array({num_tokens, in_features}, mx::float32, 21) + mx::array(0.5f);
        EXPECT_EQ(quantized_error(x, weight), "");
      }
    }
  }
}

TEST_P(LinearTest, QuantizedOfEveryDtypePair) {
  for (mx::Dtype x_dtype : kDtypes) {
    for (mx::Dtype scale_dtype : kDtypes) {
      for (int bits : {3, 4, 8}) {
        for (int num_tokens : {1, 4, 23}) {
          SCOPED_TRACE(text(x_dtype, " by ", bits, " bits with scales of ", scale_dtype, ", ",
                            num_tokens, " tokens"));
          const auto weight = random_quantized(50, 224, 32, bits, scale_dtype, 22);
          const mx::array x = random_array({num_tokens, 224}, x_dtype, 23);
          EXPECT_EQ(quantized_error(x, weight, random_array({50}, scale_dtype, 24)), "");
        }
      }
    }
  }
}

// The packing is MLX's own.
TEST_P(LinearTest, QuantizedAsMlxQuantizes) {
  const mx::array original = random_array({30, 256}, mx::float32, 25);
  const mx::array x = random_array({3, 256}, mx::float32, 26);
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int group_size : {32, 64, 128}) {
      SCOPED_TRACE(text(bits, " bits, groups of ", group_size));
      const auto parts = mx::quantize(original, group_size, bits);
      const QuantizedMatrix weight{parts[0], parts[1], parts[2], group_size, bits};
      const Matrix dequantized =
          matrix_of(mx::dequantize(parts[0], parts[1], parts[2], group_size, bits));
      EXPECT_EQ(
          first_error(quantized_linear(x, weight), x, dequantized, dequantize(weight).magnitudes),
          "");
      EXPECT_EQ(quantized_error(x, weight), "");
    }
  }
}

TEST_P(LinearTest, QuantizedStridedViews) {
  const auto whole = random_quantized(40, 192, 32, 4, mx::float16, 27);
  const auto rows = [](const mx::array& matrix) {
    return mx::slice(matrix, {1, 0}, {40, matrix.shape(1)}, {3, 1});
  };
  const QuantizedMatrix every_third{rows(whole.weight), rows(whole.scales), rows(whole.biases), 32,
                                    4};
  const QuantizedMatrix transposed{mx::transpose(mx::contiguous(mx::transpose(whole.weight))),
                                   mx::transpose(mx::contiguous(mx::transpose(whole.scales))),
                                   mx::transpose(mx::contiguous(mx::transpose(whole.biases))), 32,
                                   4};
  const mx::array wide = random_array({21, 400}, mx::bfloat16, 28);
  for (int num_tokens : {1, 21}) {
    const mx::array x = mx::slice(wide, {0, 100}, {num_tokens, 292});
    EXPECT_EQ(quantized_error(x, every_third), "");
    EXPECT_EQ(quantized_error(x, transposed), "");
  }
}

TEST_P(LinearTest, QuantizedOfNoTokens) {
  mx::array y =
      quantized_linear(mx::zeros({0, 64}), random_quantized(8, 64, 32, 4, mx::float32, 29));
  mx::eval(y);
  EXPECT_EQ(y.shape(), mx::Shape({0, 8}));
}

TEST_P(LinearTest, QuantizedRowsAreTheMatrixs) {
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (const auto& [in_features, group_size] : shapes_of(bits)) {
      for (mx::Dtype dtype : kDtypes) {
        SCOPED_TRACE(text(bits, " bits, groups of ", group_size, " of ", in_features, ", ", dtype));
        const auto matrix = random_quantized(19, in_features, group_size, bits, mx::float16, 30);
        const std::vector<int32_t> ids = {3, 0, 18, 3, -1, -19, 7};
        const mx::array rows = quantized_rows(
            matrix, mx::array(ids.begin(), {static_cast<int>(ids.size())}, mx::int32), dtype);
        ASSERT_EQ(rows.dtype(), dtype);
        const Matrix actual = matrix_of(rows);
        const Dequantized expected = dequantize(matrix);
        const auto& tolerance = product_tolerance_of(dtype);
        for (size_t i = 0; i < ids.size(); ++i) {
          const int row = ids[i] < 0 ? ids[i] + 19 : ids[i];
          for (int column = 0; column < in_features; ++column) {
            ASSERT_NEAR(actual.at(i, column), expected.values.at(row, column),
                        tolerance.sum * expected.magnitudes.at(row, column) +
                            tolerance.rounding * std::abs(expected.values.at(row, column)))
                << row << ", " << column;
          }
        }
      }
    }
  }
}

TEST_P(LinearTest, QuantizedRowsStayInsideTheMatrix) {
  const auto matrix = random_quantized(6, 64, 32, 4, mx::float32, 31);
  const auto rows = [&](std::vector<int32_t> ids) {
    const mx::array array(ids.begin(), {static_cast<int>(ids.size())}, mx::int32);
    return values_of(quantized_rows(matrix, array, mx::float32));
  };
  EXPECT_EQ(rows({6, 1 << 30, -7, -(1 << 30)}), rows({5, 5, 0, 0}));
  EXPECT_TRUE(rows({}).empty());
}

// ---- Against the fallbacks ----

void expect_near(const mx::array& actual, const mx::array& expected, double tolerance) {
  ASSERT_EQ(actual.dtype(), expected.dtype());
  ASSERT_EQ(actual.shape(), expected.shape());
  expect_close(actual, values_of(expected), {tolerance, tolerance});
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

TEST_P(LinearTest, QuantizedAgreesWithTheFallback) {
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int group_size : {24, 32, 64, 96, 192}) {
      SCOPED_TRACE(text(bits, " bits, groups of ", group_size));
      const auto weight = random_quantized(16, 192, group_size, bits, mx::float16, 35);
      const mx::array bias = random_array({16}, mx::float16, 36);
      for (const mx::Shape& shape : {mx::Shape{192}, mx::Shape{2, 10, 192}}) {
        const mx::array x = random_array(shape, mx::float32, 37);
        const double tolerance = 1e-4 * (1 << bits);
        expect_near(quantized_linear(x, weight, bias), quantized_linear_fallback(x, weight, bias),
                    tolerance);
      }
      const mx::array ids(std::vector<int32_t>{5, 0, 15}.begin(), {3}, mx::int32);
      const mx::array rows = quantized_rows(weight, ids, mx::float32);
      set_device_kernels_enabled(false);
      const mx::array fallback_rows = quantized_rows(weight, ids, mx::float32);
      set_device_kernels_enabled(true);
      expect_near(rows, fallback_rows, 1e-4);
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

// ---- The order of sums ----

// `num_tokens` rows of `x` by a 4-bit matrix, on one thread (inside a body all calls are inline)
// or on all.
std::vector<float> product(const QuantizedMatrix& matrix, mx::array x, int num_tokens,
                           bool on_one_thread) {
  mx::array weight = matrix.weight, scales = matrix.scales, biases = matrix.biases;
  mx::eval(weight, scales, biases, x);
  std::vector<float> y(static_cast<size_t>(num_tokens) * weight.shape(0));
  const cpu::Matmul matmul({.out_features = matrix.out_features(),
                            .in_features = matrix.in_features(),
                            .elements = weight.data<void>(),
                            .stride = weight.shape(1),
                            .type = cpu::ElementType::kFloat32,
                            .bits = matrix.bits,
                            .group_size = matrix.group_size,
                            .scales = scales.data<void>(),
                            .scales_stride = scales.shape(1),
                            .biases = biases.data<void>(),
                            .biases_stride = biases.shape(1)},
                           {.elements = x.data<void>(),
                            .type = cpu::ElementType::kFloat32,
                            .num_tokens = num_tokens,
                            .stride = x.shape(1)},
                           {.elements = y.data(),
                            .type = cpu::ElementType::kFloat32,
                            .bias = nullptr,
                            .bias_type = cpu::ElementType::kFloat32});
  std::vector<float> workspace(matmul.workspace_floats());
  if (on_one_thread) {
    cpu::parallel_for(2, 1, [&](int64_t begin, int64_t) {
      if (begin == 0) matmul.run(workspace.data());
    });
  } else {
    matmul.run(workspace.data());
  }
  return y;
}

TEST_P(LinearTest, ResultsDoNotDependOnThreads) {
  for (int bits : {3, 4}) {
    const auto matrix = random_quantized(700, 256, 32, bits, mx::float32, 40);
    for (int num_tokens : {1, 3, 70, 600}) {
      const mx::array x = random_array({num_tokens, 256}, mx::float32, 41);
      const auto alone = product(matrix, x, num_tokens, true);
      for (int i = 0; i < 3; ++i) EXPECT_EQ(product(matrix, x, num_tokens, false), alone);
    }
  }
}

TEST_P(LinearTest, ATokenDoesNotDependOnTheOthersOfItsBatch) {
  const auto matrix = random_quantized(100, 256, 32, 4, mx::float32, 42);
  const mx::array x = random_array({600, 256}, mx::float32, 43);
  const auto all = product(matrix, x, 600, false);
  for (int num_tokens : {17, 48, 599}) {
    const auto some = product(matrix, x, num_tokens, false);
    EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin())) << num_tokens;
  }
}

// ---- Errors ----

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

TEST(QuantizedLinearErrors, NameTheArgument) {
  const mx::array x = mx::zeros({2, 64});
  const auto good = random_quantized(8, 64, 32, 4, mx::float32, 44);
  const auto of = [&](const std::function<void(QuantizedMatrix&)>& spoil) {
    QuantizedMatrix matrix = good;
    spoil(matrix);
    return message_of<std::invalid_argument>([&] { quantized_linear(x, matrix); });
  };
  EXPECT_EQ(of([](auto& m) { m.bits = 7; }),
            "[quantized_linear] bits must be one of 2, 3, 4, 5, 6, 8 but is 7.");
  EXPECT_EQ(of([](auto& m) { m.group_size = 0; }),
            "[quantized_linear] group_size must be positive but is 0.");
  EXPECT_THAT(of([](auto& m) { m.group_size = 64; }), ::testing::HasSubstr("make 512 bits"));
  EXPECT_THAT(of([](auto& m) { m.weight = mx::zeros({8, 8}, mx::int32); }),
              ::testing::HasSubstr("weight must be uint32"));
  EXPECT_THAT(of([](auto& m) { m.weight = mx::zeros({8}, mx::uint32); }),
              ::testing::HasSubstr("weight must have 2 dimensions"));
  EXPECT_THAT(of([](auto& m) { m.scales = mx::zeros({7, 2}); }),
              ::testing::HasSubstr("scales must have shape (8,2)"));
  EXPECT_THAT(of([](auto& m) { m.scales = mx::zeros({8, 2}, mx::int32); }),
              ::testing::HasSubstr("scales must be float32"));
  EXPECT_THAT(of([](auto& m) { m.biases = mx::zeros({8, 1}); }),
              ::testing::HasSubstr("biases must have shape (8,2)"));
  EXPECT_THAT(of([](auto& m) { m.biases = mx::zeros({8, 2}, mx::float16); }),
              ::testing::HasSubstr("biases must have the dtype of scales"));
  EXPECT_EQ(message_of<std::invalid_argument>([&] { quantized_linear(mx::zeros({2, 72}), good); }),
            "[quantized_linear] weight has 64 input features but x has 72.");
}

TEST(QuantizedRowsErrors, NameTheArgument) {
  const auto matrix = random_quantized(8, 64, 32, 4, mx::float32, 45);
  const auto of = [&](const mx::array& ids, mx::Dtype dtype) {
    return message_of<std::invalid_argument>([&] { quantized_rows(matrix, ids, dtype); });
  };
  EXPECT_THAT(of(mx::zeros({2}, mx::int64), mx::float32),
              ::testing::HasSubstr("ids must be int32"));
  EXPECT_THAT(of(mx::zeros({2, 1}, mx::int32), mx::float32),
              ::testing::HasSubstr("ids must have 1 dimensions"));
  EXPECT_THAT(of(mx::zeros({2}, mx::int32), mx::int32), ::testing::HasSubstr("dtype must be"));
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
