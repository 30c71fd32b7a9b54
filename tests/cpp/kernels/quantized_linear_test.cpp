// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <optional>
#include <vector>

#include "common/text.h"
#include "kernels/device_kernels.h"
#include "kernels/linear_reference.h"
#include "kernels/matmul_on_threads.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

class QuantizedLinearTest : public LinearKernelTest {};

INSTANTIATE_TEST_SUITE_P(Isas, QuantizedLinearTest, ::testing::ValuesIn(cpu::supported_isas()),
                         [](const auto& info) { return cpu::name_of(info.param); });

std::string quantized_error(const mx::array& x, const QuantizedMatrix& weight,
                            const std::optional<mx::array>& bias = std::nullopt) {
  const mx::array y = quantized_linear(x, weight, bias);
  if (y.dtype() != x.dtype()) return text("dtype ", y.dtype(), " instead of ", x.dtype());
  const Dequantized reference = dequantize(weight);
  return first_error(y, x, reference.values, reference.magnitudes,
                     bias ? values_of(*bias) : std::vector<double>());
}

struct QuantizedShape {
  int in_features;
  int group_size;
};

// Groups of the usual sizes, of odd ones (24, 40, 12) and of the whole row; rows that are converted
// in parts, of which 1376 and 680 columns make no multiple of eight.
std::vector<QuantizedShape> shapes_of(int bits) {
  std::vector<QuantizedShape> shapes = {{128, 32}, {576, 32},  {192, 64},  {256, 128},
                                        {96, 24},  {160, 160}, {1440, 40}, {1376, 32}};
  if (bits == 4) shapes.insert(shapes.end(), {{72, 24}, {40, 8}, {24, 12}, {8, 8}, {680, 40}});
  if (bits == 8) shapes.insert(shapes.end(), {{36, 12}, {4, 4}, {20, 20}, {6 * 4, 6}, {680, 40}});
  return shapes;
}

TEST_P(QuantizedLinearTest, OfEveryBitsAndGroupSize) {
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

TEST_P(QuantizedLinearTest, OfEveryDtypePair) {
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
TEST_P(QuantizedLinearTest, AsMlxQuantizes) {
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

TEST_P(QuantizedLinearTest, StridedViews) {
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

TEST_P(QuantizedLinearTest, OfNoTokens) {
  mx::array y =
      quantized_linear(mx::zeros({0, 64}), random_quantized(8, 64, 32, 4, mx::float32, 29));
  mx::eval(y);
  EXPECT_EQ(y.shape(), mx::Shape({0, 8}));
}

TEST_P(QuantizedLinearTest, RowsAreTheMatrixs) {
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

TEST_P(QuantizedLinearTest, RowsStayInsideTheMatrix) {
  const auto matrix = random_quantized(6, 64, 32, 4, mx::float32, 31);
  const auto rows = [&](std::vector<int32_t> ids) {
    const mx::array array(ids.begin(), {static_cast<int>(ids.size())}, mx::int32);
    return values_of(quantized_rows(matrix, array, mx::float32));
  };
  EXPECT_EQ(rows({6, 1 << 30, -7, -(1 << 30)}), rows({5, 5, 0, 0}));
  EXPECT_TRUE(rows({}).empty());
}

TEST_P(QuantizedLinearTest, AgreesWithTheFallback) {
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

// ---- The order of sums ----

TEST_P(QuantizedLinearTest, ResultsDoNotDependOnThreads) {
  for (int bits : {3, 4}) {
    const auto matrix = random_quantized(700, 256, 32, bits, mx::float32, 40);
    for (int num_tokens : {1, 3, 70, 600}) {
      const mx::array x = random_array({num_tokens, 256}, mx::float32, 41);
      const auto alone = product(rows_of(matrix), x, num_tokens, true);
      for (int i = 0; i < 3; ++i) EXPECT_EQ(product(rows_of(matrix), x, num_tokens, false), alone);
    }
  }
}

TEST_P(QuantizedLinearTest, ATokenDoesNotDependOnTheOthersOfItsBatch) {
  const auto matrix = random_quantized(100, 256, 32, 4, mx::float32, 42);
  const mx::array x = random_array({600, 256}, mx::float32, 43);
  const auto all = product(rows_of(matrix), x, 600, false);
  for (int num_tokens : {17, 48, 599}) {
    const auto some = product(rows_of(matrix), x, num_tokens, false);
    EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin())) << num_tokens;
  }
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
  EXPECT_EQ(message_of<std::invalid_argument>([&] {
              quantized_rows(random_quantized(0, 64, 32, 4, mx::float32, 46),
                             mx::zeros({2}, mx::int32), mx::float32);
            }),
            "[quantized_rows] the matrix has no rows to take.");
  EXPECT_THAT(of(mx::zeros({2}, mx::int32), mx::int32), ::testing::HasSubstr("dtype must be"));
}

}  // namespace
}  // namespace vllm_metal
