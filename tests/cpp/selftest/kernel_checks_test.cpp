// SPDX-License-Identifier: Apache-2.0
// The self-test's table of ops passes here, and finds results that are wrong.
#include "selftest/kernel_checks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <set>

#include "kernels/device_kernels.h"
#include "selftest/numbers.h"

namespace vllm_metal::selftest {
namespace {

using ::testing::HasSubstr;

// A change of one element in the middle of the first result: relative to it, or to 1 if larger.
std::function<void(std::vector<mx::array>&)> changed_by(float amount) {
  return [amount](std::vector<mx::array>& arrays) {
    mx::array& x = arrays.front();
    std::vector<double> values = values_of(x);
    double& value = values[values.size() / 2];
    value += amount * std::max(1.0, std::abs(value));
    const std::vector<float> floats(values.begin(), values.end());
    x = mx::array(floats.begin(), x.shape());
  };
}

TEST(KernelChecks, AllPassOrSayWhyNot) {
  for (const Check& check : kernel_checks({.quick = true})) {
    const Result result = run_check(check);
    EXPECT_NE(result.outcome, Outcome::kFailed) << check.name << ": " << result.detail;
    if (result.outcome == Outcome::kSkipped) {
      EXPECT_NE(result.detail, "") << check.name;
    }
  }
}

TEST(KernelChecks, OneWrongElementIsFound) {
  // The least of each dtype that is no rounding.
  const std::vector<std::pair<std::string, float>> amounts = {
      {"/float32", 0.001f}, {"/float16", 0.01f}, {"/bfloat16", 0.1f}};
  int found = 0;
  for (const auto& [dtype, amount] : amounts) {
    for (const Check& check : kernel_checks({.quick = true, .alter = changed_by(amount)})) {
      if (!check.name.ends_with(dtype)) continue;
      const Result result = run_check(check);
      if (result.outcome == Outcome::kSkipped) continue;
      if (check.name.find("/compile/") != std::string::npos) continue;  // computes nothing
      EXPECT_EQ(result.outcome, Outcome::kFailed) << check.name << " " << *result.worst_error;
      ++found;
    }
  }
  EXPECT_GT(found, 70);
}

TEST(KernelChecks, ANaNAndAWrongShapeAreFound) {
  const auto nan = [](std::vector<mx::array>& arrays) {
    arrays.back() = arrays.back() + mx::array(std::numeric_limits<float>::quiet_NaN());
  };
  const auto shape = [](std::vector<mx::array>& arrays) {
    arrays.back() = mx::reshape(arrays.back(), {-1});
  };
  const auto fewer = [](std::vector<mx::array>& arrays) { arrays.clear(); };
  for (const std::function<void(std::vector<mx::array>&)>& alter :
       {std::function<void(std::vector<mx::array>&)>(nan), {shape}, {fewer}}) {
    const Check check = kernel_checks({.quick = true, .alter = alter}).front();
    EXPECT_EQ(run_check(check).outcome, Outcome::kFailed) << check.name;
  }
}

TEST(KernelChecks, NamesAreUniqueAndTheQuickOnesAreAmongAll) {
  std::set<std::string> all;
  for (const Check& check : kernel_checks({}))
    EXPECT_TRUE(all.insert(check.name).second) << check.name;
  for (const Check& check : kernel_checks({.quick = true}))
    EXPECT_TRUE(all.contains(check.name)) << check.name;
}

TEST(KernelChecks, WithoutAGpuTheReasonIsGiven) {
  int skipped = 0;
  for (const Check& check : kernel_checks({.why_no_gpu = "because"})) {
    if (!check.name.starts_with("gpu")) continue;
    const Result result = run_check(check);
    EXPECT_EQ(result.outcome, Outcome::kSkipped) << check.name;
    EXPECT_EQ(result.detail, "because");
    ++skipped;
  }
  EXPECT_EQ(skipped, 2);
}

TEST(KernelChecks, WhatACheckThrowsIsAFailureAndSettingsAreBack) {
  mx::set_default_device(mx::Device::cpu);
  const Result result = run_check({"x", []() -> Finding {
                                     set_device_kernels_enabled(false);
                                     throw std::runtime_error("the device is gone");
                                   }});
  EXPECT_EQ(result.outcome, Outcome::kFailed);
  EXPECT_THAT(result.detail, HasSubstr("the device is gone"));
  EXPECT_TRUE(device_kernels_enabled());
}

}  // namespace
}  // namespace vllm_metal::selftest
