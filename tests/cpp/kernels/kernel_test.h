// SPDX-License-Identifier: Apache-2.0
// What the tests of the kernels share: comparison with float64 references, and a fixture that runs
// a test for each instruction set and dtype. Inputs and tolerances are those of the self-test.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "common/mlx.h"
#include "common/text.h"
#include "kernels/cpu/isa.h"
#include "kernels/device_kernels.h"
#include "selftest/numbers.h"

namespace vllm_metal::testing_support {

using selftest::fallback_tolerance_of;
using selftest::random_array;
using selftest::Tolerance;
using selftest::tolerance_of;
using selftest::values_of;

inline std::string text_of(mx::Dtype dtype) { return text(dtype); }

inline void expect_close(const std::vector<double>& actual, const std::vector<double>& expected,
                         Tolerance tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    const double allowed = tolerance.absolute + tolerance.relative * std::abs(expected[i]);
    // Not `> allowed`: a NaN must fail.
    ASSERT_TRUE(std::abs(actual[i] - expected[i]) <= allowed)
        << "at " << i << ": " << actual[i] << " instead of " << expected[i];
  }
}

inline void expect_close(const mx::array& actual, const std::vector<double>& expected,
                         Tolerance tolerance) {
  expect_close(values_of(actual), expected, tolerance);
}

inline void expect_close(const mx::array& actual, const std::vector<double>& expected) {
  expect_close(actual, expected, tolerance_of(actual.dtype()));
}

// Bit for bit, but for the sign of zero.
inline void expect_equal(const mx::array& actual, const mx::array& expected) {
  ASSERT_EQ(actual.shape(), expected.shape());
  ASSERT_EQ(actual.dtype(), expected.dtype());
  const auto actual_values = values_of(actual);
  const auto expected_values = values_of(expected);
  for (size_t i = 0; i < actual_values.size(); ++i) {
    ASSERT_EQ(actual_values[i], expected_values[i]) << "at " << i;
  }
}

// Runs `function` and returns the message of the Exception that it must throw.
template <typename Exception, typename Function>
std::string message_of(const Function& function) {
  try {
    function();
  } catch (const Exception& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

// On the CPU, with our kernels, and with every setting put back afterwards.
class KernelTest : public ::testing::Test {
 protected:
  KernelTest() { mx::set_default_device(mx::Device::cpu); }
  ~KernelTest() override {
    set_device_kernels_enabled(true);
    cpu::set_isa(cpu::supported_isas().front());
  }
};

// The same for each instruction set that this processor has and each dtype of activations.
class KernelTestP : public KernelTest,
                    public ::testing::WithParamInterface<std::tuple<cpu::Isa, int>> {
 protected:
  KernelTestP() { cpu::set_isa(std::get<0>(GetParam())); }

  static mx::Dtype dtype_at(int index) {
    return std::vector<mx::Dtype>{mx::float32, mx::float16, mx::bfloat16}.at(index);
  }
  mx::Dtype dtype() const { return dtype_at(std::get<1>(GetParam())); }

 public:
  static std::string name_of(const ::testing::TestParamInfo<ParamType>& info) {
    return std::string(cpu::name_of(std::get<0>(info.param))) + "_" +
           text_of(dtype_at(std::get<1>(info.param)));
  }
};

#define INSTANTIATE_KERNEL_TESTS(Suite)                                                       \
  INSTANTIATE_TEST_SUITE_P(                                                                   \
      All, Suite,                                                                             \
      ::testing::Combine(::testing::ValuesIn(cpu::supported_isas()), ::testing::Range(0, 3)), \
      Suite::name_of)

}  // namespace vllm_metal::testing_support
