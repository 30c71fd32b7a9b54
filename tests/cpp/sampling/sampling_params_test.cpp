// SPDX-License-Identifier: Apache-2.0
#include "sampling/sampling_params.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <stdexcept>
#include <string>

namespace vllm_metal {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::string error_of(const SamplingParams& params) {
  try {
    params.validate();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(SamplingParams, AcceptsEveryMeaningfulValue) {
  EXPECT_EQ(error_of({}), "");
  for (float temperature : {0.0f, 1e-6f, 1.0f, 100.0f}) {
    EXPECT_EQ(error_of({.temperature = temperature}), "");
  }
  for (float top_p : {1e-30f, 0.5f, 1.0f}) EXPECT_EQ(error_of({.top_p = top_p}), "");
  for (int top_k : {-1, 0, 1, 1 << 30}) EXPECT_EQ(error_of({.top_k = top_k}), "");
  for (int count : {-1, 0, 1, 1 << 30}) EXPECT_EQ(error_of({.num_logprobs = count}), "");
  for (int64_t seed : {INT64_MIN, int64_t{0}, INT64_MAX}) EXPECT_EQ(error_of({.seed = seed}), "");
}

TEST(SamplingParams, NamesWhatItRefuses) {
  using testing::AllOf;
  using testing::HasSubstr;
  for (float temperature : {-0.1f, kNaN, kInfinity, -kInfinity}) {
    EXPECT_THAT(error_of({.temperature = temperature}), HasSubstr("temperature must be"));
  }
  for (float top_p : {0.0f, -0.5f, 1.01f, kNaN, kInfinity}) {
    EXPECT_THAT(error_of({.top_p = top_p}), HasSubstr("top_p must be in (0, 1]"));
  }
  EXPECT_THAT(error_of({.top_k = -2}), AllOf(HasSubstr("top_k"), HasSubstr("-2")));
  EXPECT_THAT(error_of({.num_logprobs = -3}), AllOf(HasSubstr("num_logprobs"), HasSubstr("-3")));
}

TEST(SamplingParams, IsGreedyBelowTheThresholdOnly) {
  EXPECT_TRUE(SamplingParams{.temperature = 0.0f}.is_greedy());
  EXPECT_TRUE(SamplingParams{.temperature = 9.9e-6f}.is_greedy());
  EXPECT_FALSE(SamplingParams{.temperature = 1e-5f}.is_greedy());
  EXPECT_FALSE(SamplingParams{}.is_greedy());
}

}  // namespace
}  // namespace vllm_metal
