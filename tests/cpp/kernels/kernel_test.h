// SPDX-License-Identifier: Apache-2.0
// What the tests of the kernels share: reproducible inputs, comparison with float64 references,
// and a fixture that runs a test for each instruction set and dtype.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "common/mlx.h"
#include "kernels/cpu/isa.h"
#include "kernels/device_kernels.h"

namespace vllm_metal::testing_support {

struct Tolerance {
  double relative;
  double absolute;
};

// For results computed in float32 and rounded once: half a unit in the last place, and a little.
inline Tolerance tolerance_of(mx::Dtype dtype) {
  if (dtype == mx::float32) return {1e-5, 1e-5};
  if (dtype == mx::float16) return {5.2e-4, 2e-5};
  return {4.1e-3, 2e-5};
}

// For MLX's own ops, which round on the way.
inline Tolerance fallback_tolerance_of(mx::Dtype dtype) {
  if (dtype == mx::float32) return {2e-5, 2e-5};
  if (dtype == mx::float16) return {4e-3, 4e-3};
  return {3e-2, 3e-2};
}

inline std::string text_of(mx::Dtype dtype) {
  std::ostringstream out;
  out << dtype;
  return out.str();
}

// The values of `x` in row-major order, as they are after rounding to its dtype.
inline std::vector<double> values_of(const mx::array& x) {
  mx::array flat = mx::contiguous(mx::flatten(mx::astype(x, mx::float32)));
  mx::eval(flat);
  return std::vector<double>(flat.data<float>(), flat.data<float>() + flat.size());
}

inline mx::array random_array(const mx::Shape& shape, mx::Dtype dtype, unsigned seed,
                              float deviation = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  size_t size = 1;
  for (int extent : shape) size *= extent;
  std::vector<float> values(size);
  for (float& value : values) value = normal(generator);
  mx::array result = mx::astype(mx::array(values.begin(), shape, mx::float32), dtype);
  mx::eval(result);
  return result;
}

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
