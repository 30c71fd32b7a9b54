// SPDX-License-Identifier: Apache-2.0
#include "kernels/rms_norm.h"

#include <mlx/primitives.h>

#include <stdexcept>
#include <vector>

#include "kernels/table_cases.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

constexpr float kEps = 1e-5f;

std::vector<double> reference(const std::vector<double>& x, const std::vector<double>& weight) {
  const size_t width = weight.size();
  std::vector<double> result(x.size());
  for (size_t row = 0; row < x.size(); row += width) {
    double squares = 0;
    for (size_t i = 0; i < width; ++i) squares += x[row + i] * x[row + i];
    const double scale = 1 / std::sqrt(squares / width + kEps);
    for (size_t i = 0; i < width; ++i) result[row + i] = x[row + i] * scale * weight[i];
  }
  return result;
}

class RmsNorm : public KernelTestP {};
INSTANTIATE_KERNEL_TESTS(RmsNorm);

TEST_P(RmsNorm, MatchesReferenceForAnyWidth) {
  for (int width : {1, 3, 8, 15, 64, 97, 576, 2049}) {
    const auto x = random_array({5, width}, dtype(), 1, 3.0f);
    const auto weight = random_array({width}, dtype(), 2);
    const auto result = rms_norm(x, weight, kEps);
    EXPECT_EQ(result.dtype(), dtype());
    expect_close(result, reference(values_of(x), values_of(weight)));
  }
}

TEST_P(RmsNorm, ManyRowsOnSeveralThreads) {
  const auto x = random_array({300, 576}, dtype(), 3);
  const auto weight = random_array({576}, dtype(), 4);
  expect_close(rms_norm(x, weight, kEps), reference(values_of(x), values_of(weight)));
}

TEST_P(RmsNorm, ReadsStridedRows) {
  const auto weight = random_array({64}, dtype(), 5);
  // A slice of a wider projection, every other row of it, a transposed array and one whose
  // leading dimensions are no even steps.
  const auto wide = random_array({6, 200}, dtype(), 6);
  const auto columns = mx::slice(wide, {0, 70}, {6, 134});
  const auto every_other = mx::slice(wide, {0, 70}, {6, 134}, {2, 1});
  const auto transposed = mx::transpose(random_array({64, 7}, dtype(), 7));
  const auto uneven =
      mx::slice(random_array({3, 4, 5, 64}, dtype(), 8), {0, 1, 1, 0}, {3, 3, 4, 64});
  const auto reversed = mx::slice(wide, {5, 0}, {-7, 64}, {-1, 1});
  for (const auto& x : {columns, every_other, transposed, uneven, reversed})
    expect_close(rms_norm(x, weight, kEps), reference(values_of(x), values_of(weight)));
}

TEST_P(RmsNorm, AddsResidualRoundedToTheDtype) {
  for (int width : {1, 17, 64, 576}) {
    const auto x = mx::slice(random_array({9, width + 3}, dtype(), 9), {0, 1}, {9, width + 1});
    const auto residual = random_array({9, width}, dtype(), 10, 8.0f);
    const auto weight = random_array({width}, dtype(), 11);
    const auto [sum, normalized] = add_rms_norm(x, residual, weight, kEps);
    expect_equal(sum, x + residual);
    expect_close(normalized, reference(values_of(x + residual), values_of(weight)));
  }
}

TEST_P(RmsNorm, FallbackAgrees) {
  const auto x = random_array({2, 3, 96}, dtype(), 12);
  const auto residual = random_array({2, 3, 96}, dtype(), 13);
  const auto weight = random_array({96}, dtype(), 14);
  expect_close(rms_norm(x, weight, kEps), values_of(rms_norm_fallback(x, weight, kEps)),
               fallback_tolerance_of(dtype()));
  const auto [sum, normalized] = add_rms_norm(x, residual, weight, kEps);
  const auto [sum_fallback, normalized_fallback] = add_rms_norm_fallback(x, residual, weight, kEps);
  expect_equal(sum, sum_fallback);
  expect_close(normalized, values_of(normalized_fallback), fallback_tolerance_of(dtype()));
}

TEST_P(RmsNorm, OddSizesWhereverTheyLie) {
  size_t next = 0;
  for (int width : kOddSizes) {
    for (int rows : {1, 2, 7, 17, 33}) {
      for (Placement placement : kPlacements) {
        SCOPED_TRACE(testing::Message() << rows << " x " << width << ", " << text_of(placement));
        const auto x = placed(random_array({rows, width}, dtype(), 20), placement);
        const auto residual =
            placed(random_array({rows, width}, dtype(), 21), kPlacements[next++ % 3]);
        const auto weight = mx::slice(random_array({width + 1}, dtype(), 22), {1}, {width + 1});
        const auto loose = fallback_tolerance_of(dtype());
        auto expected = reference(values_of(x), values_of(weight));
        expect_close(rms_norm(x, weight, kEps), expected);
        expect_close(rms_norm_fallback(x, weight, kEps), expected, loose);
        expected = reference(values_of(x + residual), values_of(weight));
        const auto [sum, normalized] = add_rms_norm(x, residual, weight, kEps);
        expect_equal(sum, x + residual);
        expect_close(normalized, expected);
        expect_close(add_rms_norm_fallback(x, residual, weight, kEps).second, expected, loose);
        if (HasFatalFailure()) return;
      }
    }
  }
}

class RmsNormOnce : public KernelTest {};

TEST_F(RmsNormOnce, IsOneNode) {
  const auto x = random_array({2, 8}, mx::float32, 1);
  const auto weight = random_array({8}, mx::float32, 2);
  EXPECT_EQ(rms_norm(x, weight, kEps).inputs()[0].id(), x.id());
  const auto [sum, normalized] = add_rms_norm(x, x, weight, kEps);
  EXPECT_EQ(sum.primitive_id(), normalized.primitive_id());
  EXPECT_EQ(sum.inputs()[0].id(), x.id());
}

TEST_F(RmsNormOnce, CannotRunOnAGpu) {
  mx::array result = rms_norm(mx::ones({2, 8}), mx::ones({8}), kEps);
  std::vector<mx::array> outputs{result};
  EXPECT_EQ(message_of<std::runtime_error>(
                [&] { result.primitive().eval_gpu(result.inputs(), outputs); }),
            "[RmsNorm] is a CPU kernel and cannot run on a GPU.");
}

TEST_F(RmsNormOnce, ZeroRows) {
  const auto x = mx::zeros({0, 64});
  const auto weight = mx::ones({64});
  EXPECT_EQ(values_of(rms_norm(x, weight, kEps)).size(), 0u);
  EXPECT_EQ(values_of(add_rms_norm(x, x, weight, kEps).first).size(), 0u);
}

TEST_F(RmsNormOnce, RefusesWhatDoesNotFit) {
  const auto x = mx::zeros({2, 8});
  EXPECT_EQ(message_of<std::invalid_argument>([&] { rms_norm(x, mx::ones({7}), kEps); }),
            "[rms_norm] weight must have shape (8) but has (7).");
  EXPECT_EQ(
      message_of<std::invalid_argument>([&] { rms_norm(x, mx::ones({8}, mx::bfloat16), kEps); }),
      "[rms_norm] weight must have the dtype of x, float32, but is bfloat16.");
  EXPECT_EQ(message_of<std::invalid_argument>(
                [&] { rms_norm(mx::zeros({2, 8}, mx::int32), mx::ones({8}), kEps); }),
            "[rms_norm] x must be float32, float16 or bfloat16 but is int32.");
  EXPECT_EQ(message_of<std::invalid_argument>(
                [&] { add_rms_norm(x, mx::zeros({3, 8}), mx::ones({8}), kEps); }),
            "[add_rms_norm] residual must have shape (2,8) but has (3,8).");
}

}  // namespace
}  // namespace vllm_metal
