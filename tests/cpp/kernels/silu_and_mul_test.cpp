// SPDX-License-Identifier: Apache-2.0
#include "kernels/silu_and_mul.h"

#include <stdexcept>

#include "kernels/table_cases.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

std::vector<double> reference(const mx::array& gate_up) {
  const auto values = values_of(gate_up);
  const size_t width = gate_up.shape(-1) / 2;
  std::vector<double> result;
  for (size_t row = 0; row < values.size(); row += 2 * width) {
    for (size_t i = 0; i < width; ++i) {
      const double gate = values[row + i];
      result.push_back(gate / (1 + std::exp(-gate)) * values[row + width + i]);
    }
  }
  return result;
}

class SiluAndMul : public KernelTestP {};
INSTANTIATE_KERNEL_TESTS(SiluAndMul);

TEST_P(SiluAndMul, MatchesReferenceForAnyWidth) {
  for (int width : {1, 5, 8, 31, 64, 1536}) {
    const auto gate_up = random_array({4, 2 * width}, dtype(), 1, 4.0f);
    const auto result = silu_and_mul(gate_up);
    EXPECT_EQ(result.dtype(), dtype());
    EXPECT_EQ(result.shape(), (mx::Shape{4, width}));
    expect_close(result, reference(gate_up));
  }
}

TEST_P(SiluAndMul, ManyRowsOnSeveralThreads) {
  const auto gate_up = random_array({100, 3072}, dtype(), 2);
  expect_close(silu_and_mul(gate_up), reference(gate_up));
}

TEST_P(SiluAndMul, ReadsStridedRows) {
  const auto wide = random_array({5, 3, 90}, dtype(), 3);
  const auto slice = mx::slice(wide, {0, 1, 7}, {5, 3, 61});
  const auto transposed = mx::transpose(random_array({34, 6}, dtype(), 4));
  for (const auto& gate_up : {slice, transposed})
    expect_close(silu_and_mul(gate_up), reference(gate_up));
}

TEST_P(SiluAndMul, FarFromZero) {
  const auto gate_up = mx::astype(mx::array({-200.0f, 200.0f, -1e4f, 1e4f, 0.0f, -20.0f,  //
                                             2.0f, 2.0f, 2.0f, 2.0f, 2.0f, 2.0f},
                                            {1, 12}),
                                  dtype());
  expect_close(silu_and_mul(gate_up), reference(gate_up));
}

// On the CPU, where MLX compiles the same graph with a C++ compiler.
TEST_P(SiluAndMul, CompiledItIsTheSame) {
  for (int rows : {1, 7}) {  // compiled once for all shapes
    const auto wide = random_array({rows, 90}, dtype(), 3);
    for (const auto& gate_up : {wide, mx::slice(wide, {0, 7}, {rows, 61})}) {
      const auto result = silu_and_mul_compiled(gate_up);
      EXPECT_EQ(result.dtype(), dtype());
      expect_close(result, reference(gate_up));
    }
  }
}

TEST_P(SiluAndMul, FallbackAgrees) {
  const auto gate_up = random_array({3, 130}, dtype(), 5, 3.0f);
  expect_close(silu_and_mul(gate_up), values_of(silu_and_mul_fallback(gate_up)),
               fallback_tolerance_of(dtype()));
}

TEST_P(SiluAndMul, OddSizesWhereverTheyLie) {
  for (int width : kOddSizes) {
    for (int rows : {1, 2, 7, 17, 33}) {
      for (Placement placement : kPlacements) {
        SCOPED_TRACE(testing::Message() << rows << " x " << width << ", " << text_of(placement));
        const auto gate_up = placed(random_array({rows, 2 * width}, dtype(), 20, 3.0f), placement);
        const auto expected = reference(gate_up);
        expect_close(silu_and_mul(gate_up), expected);
        expect_close(silu_and_mul_fallback(gate_up), expected, fallback_tolerance_of(dtype()));
        if (HasFatalFailure()) return;
      }
    }
  }
}

class SiluAndMulOnce : public KernelTest {};

TEST_F(SiluAndMulOnce, IsOneNode) {
  const auto gate_up = random_array({2, 8}, mx::float32, 6);
  EXPECT_EQ(silu_and_mul(gate_up).inputs()[0].id(), gate_up.id());
}

TEST_F(SiluAndMulOnce, ZeroRows) {
  EXPECT_EQ(values_of(silu_and_mul(mx::zeros({0, 64}))).size(), 0u);
}

TEST_F(SiluAndMulOnce, RefusesWhatDoesNotFit) {
  EXPECT_EQ(message_of<std::invalid_argument>([] { silu_and_mul(mx::zeros({2, 7})); }),
            "[silu_and_mul] the last dimension of gate_up must be even, gate and up, but its "
            "shape is (2,7).");
  EXPECT_EQ(message_of<std::invalid_argument>([] { silu_and_mul(mx::zeros({2, 8}, mx::int8)); }),
            "[silu_and_mul] gate_up must be float32, float16 or bfloat16 but is int8.");
}

}  // namespace
}  // namespace vllm_metal
