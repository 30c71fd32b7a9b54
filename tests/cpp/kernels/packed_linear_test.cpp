// SPDX-License-Identifier: Apache-2.0
#include "kernels/packed_linear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <vector>

#include "common/text.h"
#include "kernels/cpu/parallel_for.h"
#include "kernels/linear_reference.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

constexpr int kAllBits[] = {2, 3, 4, 5, 6, 8};

class PackedLinearTest : public LinearKernelTest {};

INSTANTIATE_TEST_SUITE_P(Isas, PackedLinearTest, ::testing::ValuesIn(cpu::supported_isas()),
                         [](const auto& info) { return cpu::name_of(info.param); });

PackedMatrix packed(const QuantizedMatrix& matrix) {
  auto result = pack_for_device(matrix);
  if (!result) throw std::logic_error("the form is not one that is packed");
  return *result;
}

std::string packed_error(const mx::array& x, const QuantizedMatrix& weight,
                         const std::optional<mx::array>& bias = std::nullopt) {
  const mx::array y = packed_linear(x, packed(weight), bias);
  if (y.dtype() != x.dtype()) return text("dtype ", y.dtype(), " instead of ", x.dtype());
  Dequantized reference = dequantize(weight);
  if (rounds_packed_weights(x.dtype(), x.size() / x.shape(-1)))
    reference.values = rounded_to_bfloat16(std::move(reference.values));
  return first_error(y, x, reference.values, reference.magnitudes,
                     bias ? values_of(*bias) : std::vector<double>());
}

TEST_P(PackedLinearTest, OfEveryBitsAndGroupSize) {
  struct Shape {
    int in_features, group_size;
  };
  for (int bits : kAllBits) {
    for (const auto& [in_features, group_size] :
         std::vector<Shape>{{32, 32}, {576, 32}, {192, 64}, {256, 128}, {288, 96}, {704, 704}}) {
      for (int num_tokens : kTokenCounts) {
        SCOPED_TRACE(
            text(bits, " bits, groups of ", group_size, ", ", num_tokens, " x ", in_features));
        const auto weight = random_quantized(27, in_features, group_size, bits, mx::float32, 20);
        const mx::array x =
            random_array({num_tokens, in_features}, mx::float32, 21) + mx::array(0.5f);
        EXPECT_EQ(packed_error(x, weight), "");
      }
    }
  }
}

// Fewer rows than a strip, whole strips, and the last of a block not full.
TEST_P(PackedLinearTest, OfEveryNumberOfRows) {
  for (int rows : {1, 15, 16, 17, 31, 48, 49, 63, 97, 200}) {
    const auto weight = random_quantized(rows, 96, 32, 4, mx::float16, 50);
    for (int num_tokens : {1, 2, 7, 16, 17, 33}) {
      SCOPED_TRACE(text(rows, " rows, ", num_tokens, " tokens"));
      EXPECT_EQ(packed_error(random_array({num_tokens, 96}, mx::float32, 51), weight), "");
    }
  }
}

TEST_P(PackedLinearTest, OfEveryDtypePair) {
  for (mx::Dtype x_dtype : kDtypes) {
    for (mx::Dtype scale_dtype : kDtypes) {
      for (int bits : kAllBits) {
        for (int num_tokens : {1, 4, 23}) {
          SCOPED_TRACE(text(x_dtype, " by ", bits, " bits with scales of ", scale_dtype, ", ",
                            num_tokens, " tokens"));
          const auto weight = random_quantized(50, 224, 32, bits, scale_dtype, 22);
          const mx::array x = random_array({num_tokens, 224}, x_dtype, 23);
          EXPECT_EQ(packed_error(x, weight, random_array({50}, scale_dtype, 24)), "");
        }
      }
    }
  }
}

TEST_P(PackedLinearTest, OfLargeValues) {
  // All bits set: the sign bit of a word is then the highest bit of its last value.
  for (int bits : kAllBits) {
    auto weight = random_quantized(16, 64, 32, bits, mx::float32, 60);
    weight.weight = mx::full(weight.weight.shape(), mx::array(0xffffffffu));
    EXPECT_EQ(packed_error(random_array({1, 64}, mx::float32, 61), weight), "") << bits;
    EXPECT_EQ(packed_error(random_array({20, 64}, mx::float32, 61), weight), "") << bits;
  }
}

TEST_P(PackedLinearTest, StridedViews) {
  const auto whole = random_quantized(40, 192, 32, 4, mx::float16, 27);
  const auto rows = [](const mx::array& matrix) {
    return mx::slice(matrix, {1, 0}, {40, matrix.shape(1)}, {3, 1});
  };
  const QuantizedMatrix every_third{rows(whole.weight), rows(whole.scales), rows(whole.biases), 32,
                                    4};
  const mx::array wide = random_array({21, 400}, mx::bfloat16, 28);
  for (int num_tokens : {1, 21}) {
    const mx::array x = mx::slice(wide, {0, 100}, {num_tokens, 292});
    EXPECT_EQ(packed_error(x, every_third), "");
    EXPECT_EQ(packed_error(mx::slice(wide, {0, 0}, {num_tokens, 384}, {1, 2}), every_third), "");
  }
}

TEST_P(PackedLinearTest, OfNoTokensAndOfNoRows) {
  mx::array y =
      packed_linear(mx::zeros({0, 64}), packed(random_quantized(8, 64, 32, 4, mx::float32, 29)));
  mx::array z =
      packed_linear(mx::zeros({3, 64}), packed(random_quantized(0, 64, 32, 4, mx::float32, 29)));
  mx::eval(y, z);
  EXPECT_EQ(y.shape(), mx::Shape({0, 8}));
  EXPECT_EQ(z.shape(), mx::Shape({3, 0}));
}

TEST_P(PackedLinearTest, UnpackingGivesTheMatrixBack) {
  for (int bits : kAllBits) {
    for (mx::Dtype dtype : kDtypes) {
      for (int rows : {16, 19, 33}) {
        const auto matrix = random_quantized(rows, 192, 64, bits, dtype, 30);
        const QuantizedMatrix back = unpack(packed(matrix));
        SCOPED_TRACE(text(bits, " bits, ", dtype, ", ", rows, " rows"));
        expect_equal(mx::view(back.weight, mx::int16), mx::view(matrix.weight, mx::int16));
        expect_equal(back.scales, matrix.scales);
        expect_equal(back.biases, matrix.biases);
        EXPECT_EQ(back.group_size, 64);
        EXPECT_EQ(back.bits, bits);
      }
    }
  }
}

TEST_P(PackedLinearTest, RowsAreTheMatrixs) {
  const std::vector<int32_t> ids = {3, 0, 18, 3, -1, -19, 7, 19, -20};
  const mx::array id_array(ids.begin(), {static_cast<int>(ids.size())}, mx::int32);
  for (int bits : kAllBits) {
    for (mx::Dtype dtype : kDtypes) {
      const auto matrix = random_quantized(19, 192, 64, bits, mx::float16, 30);
      SCOPED_TRACE(text(bits, " bits, ", dtype));
      expect_equal(packed_rows(packed(matrix), id_array, dtype),
                   quantized_rows(matrix, id_array, dtype));
    }
  }
}

TEST_P(PackedLinearTest, AgreesWithTheFallback) {
  for (int bits : kAllBits) {
    for (int group_size : {32, 64, 96, 192}) {
      SCOPED_TRACE(text(bits, " bits, groups of ", group_size));
      const PackedMatrix weight =
          packed(random_quantized(18, 192, group_size, bits, mx::float16, 35));
      const mx::array bias = random_array({18}, mx::float16, 36);
      for (const mx::Shape& shape : {mx::Shape{192}, mx::Shape{2, 10, 192}}) {
        const mx::array x = random_array(shape, mx::float32, 37);
        expect_near(packed_linear(x, weight, bias), packed_linear_fallback(x, weight, bias),
                    1e-4 * (1 << bits));
      }
      const mx::array ids(std::vector<int32_t>{5, 0, 17}.begin(), {3}, mx::int32);
      const mx::array rows = packed_rows(weight, ids, mx::float32);
      set_device_kernels_enabled(false);
      const mx::array fallback_rows = packed_rows(weight, ids, mx::float32);
      set_device_kernels_enabled(true);
      expect_near(rows, fallback_rows, 1e-4);
    }
  }
}

// ---- The order of sums ----

std::vector<double> product_of(const mx::array& x, int num_tokens, const PackedMatrix& weight) {
  return values_of(packed_linear(mx::slice(x, {0, 0}, {num_tokens, x.shape(1)}), weight));
}

// Of few tokens and of many; between the two the order differs.
TEST_P(PackedLinearTest, ATokenDoesNotDependOnTheOthersOfItsBatch) {
  for (int bits : {3, 4, 8}) {
    const PackedMatrix weight = packed(random_quantized(100, 256, 32, bits, mx::float32, 42));
    const mx::array x = random_array({600, 256}, mx::float32, 43);
    const auto few = product_of(x, 16, weight), many = product_of(x, 600, weight);
    for (int num_tokens : {1, 2, 3, 5, 8, 9, 15}) {
      const auto some = product_of(x, num_tokens, weight);
      EXPECT_TRUE(std::equal(some.begin(), some.end(), few.begin())) << num_tokens;
    }
    for (int num_tokens : {48, 599}) {
      const auto some = product_of(x, num_tokens, weight);
      EXPECT_TRUE(std::equal(some.begin(), some.end(), many.begin())) << num_tokens;
    }
  }
}

TEST_P(PackedLinearTest, FormsThatTheKernelsDoNotKnowStayAsTheyAre) {
  EXPECT_FALSE(pack_for_device(random_quantized(8, 96, 24, 4, mx::float32, 44)));
  EXPECT_FALSE(pack_for_device(random_quantized(8, 96, 16, 4, mx::float32, 44)));
  const auto good = random_quantized(8, 64, 32, 4, mx::float32, 44);
  set_device_kernels_enabled(false);
  EXPECT_FALSE(pack_for_device(good));
  set_device_kernels_enabled(true);
  EXPECT_TRUE(pack_for_device(good));
}

TEST(PackedLinearErrors, NameTheArgument) {
  mx::set_default_device(mx::Device::cpu);
  const PackedMatrix good = packed(random_quantized(8, 64, 32, 4, mx::float32, 44));
  const auto of = [&](const auto& call) { return message_of<std::invalid_argument>(call); };
  EXPECT_EQ(of([&] { packed_linear(mx::zeros({2, 72}), good); }),
            "[packed_linear] weight has 64 input features but x has 72.");
  EXPECT_THAT(of([&] { packed_linear(mx::zeros({2, 64}), good, mx::zeros({9})); }),
              ::testing::HasSubstr("[packed_linear] bias must have shape (8)"));
  EXPECT_THAT(of([&] { packed_rows(good, mx::zeros({2}, mx::int64), mx::float32); }),
              ::testing::HasSubstr("[packed_rows] ids must be int32"));
  QuantizedMatrix bad = random_quantized(8, 64, 32, 4, mx::float32, 44);
  bad.bits = 7;
  EXPECT_THAT(of([&] { pack_for_device(bad); }),
              ::testing::HasSubstr("[pack_for_device] bits must be one of"));
}

}  // namespace
}  // namespace vllm_metal
