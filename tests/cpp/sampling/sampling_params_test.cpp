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
  for (float min_p : {0.0f, 0.5f, 1.0f}) EXPECT_EQ(error_of({.min_p = min_p}), "");
  for (float penalty : {-2.0f, 2.0f}) EXPECT_EQ(error_of({.presence_penalty = penalty}), "");
  EXPECT_EQ(error_of({.repetition_penalty = 1e-3f}), "");
  EXPECT_EQ(error_of({.logit_bias = {{1, -kInfinity}, {2, 100.0f}}}), "");
  EXPECT_EQ(error_of({.thinking_token_budget = 0}), "");
  EXPECT_EQ(error_of({.prompt_logprob_token_ids = {1, -1}, .prompt_logprob_ids_per_row = 2}), "");
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
  for (float min_p : {-0.1f, 1.01f, kNaN}) {
    EXPECT_THAT(error_of({.min_p = min_p}), HasSubstr("min_p must be in [0, 1]"));
  }
  for (float penalty : {kNaN, kInfinity, -kInfinity}) {
    EXPECT_THAT(error_of({.presence_penalty = penalty}), HasSubstr("presence_penalty must be"));
    EXPECT_THAT(error_of({.frequency_penalty = penalty}), HasSubstr("frequency_penalty must be"));
  }
  for (float penalty : {0.0f, -1.0f, kNaN, kInfinity}) {
    EXPECT_THAT(error_of({.repetition_penalty = penalty}), HasSubstr("repetition_penalty must be"));
  }
  for (float bias : {kNaN, kInfinity}) {
    EXPECT_THAT(error_of({.logit_bias = {{1, 0.0f}, {2, bias}}}), HasSubstr("logit_bias must be"));
  }
}

TEST(SamplingParams, NamesListsAndCountsThatItRefuses) {
  using testing::AllOf;
  using testing::HasSubstr;
  EXPECT_THAT(error_of({.allowed_token_ids = std::vector<int32_t>{}}),
              HasSubstr("allowed_token_ids must name at least one"));
  EXPECT_THAT(error_of({.bad_words_token_ids = {{1}, {}}}), HasSubstr("bad_words_token_ids"));
  EXPECT_THAT(error_of({.min_tokens = -1}), HasSubstr("min_tokens must be at least 0 but got -1"));
  EXPECT_THAT(error_of({.thinking_token_budget = -1}), HasSubstr("thinking_token_budget must be"));
  EXPECT_THAT(error_of({.num_prompt_logprobs = -2}),
              AllOf(HasSubstr("num_prompt_logprobs"), HasSubstr("-2")));
  EXPECT_THAT(error_of({.prompt_logprob_start = -1}), HasSubstr("prompt_logprob_start must be"));
  EXPECT_THAT(error_of({.prompt_logprob_token_ids = {1}}),
              HasSubstr("prompt_logprob_ids_per_row must be at least 1"));
  EXPECT_THAT(error_of({.prompt_logprob_token_ids = {1, 2, 3}, .prompt_logprob_ids_per_row = 2}),
              AllOf(HasSubstr("a multiple of prompt_logprob_ids_per_row = 2"), HasSubstr("got 3")));
}

TEST(SamplingParams, TakesTheMostLikelyUnlessSomethingEditsTheLogits) {
  const SamplingParams greedy{.temperature = 0};
  EXPECT_TRUE(greedy.takes_most_likely());
  const auto with = [&](auto change) {
    SamplingParams params = greedy;
    change(params);
    return params.takes_most_likely();
  };
  // What only asks for scores, or filters what is not drawn from.
  EXPECT_TRUE(with([](auto& p) { p.num_logprobs = 5; }));
  EXPECT_TRUE(with([](auto& p) { p.all_stop_token_ids = {2}; }));
  EXPECT_TRUE(with([](auto& p) { p.top_k = 3, p.top_p = 0.5f, p.min_p = 0.1f; }));

  EXPECT_FALSE(with([](auto& p) { p.temperature = 1; }));
  EXPECT_FALSE(with([](auto& p) { p.presence_penalty = 0.5f; }));
  EXPECT_FALSE(with([](auto& p) { p.frequency_penalty = -0.5f; }));
  EXPECT_FALSE(with([](auto& p) { p.repetition_penalty = 1.1f; }));
  EXPECT_FALSE(with([](auto& p) { p.logit_bias = {{1, 2.0f}}; }));
  EXPECT_FALSE(with([](auto& p) { p.allowed_token_ids = std::vector<int32_t>{1, 2}; }));
  EXPECT_FALSE(with([](auto& p) { p.bad_words_token_ids = {{1}}; }));
  EXPECT_FALSE(with([](auto& p) { p.min_tokens = 3; }));
  EXPECT_FALSE(with([](auto& p) { p.has_grammar = true; }));
  EXPECT_FALSE(with([](auto& p) { p.thinking_token_budget = 0; }));
}

TEST(SamplingParams, IsGreedyBelowTheThresholdOnly) {
  EXPECT_TRUE(SamplingParams{.temperature = 0.0f}.is_greedy());
  EXPECT_TRUE(SamplingParams{.temperature = 9.9e-6f}.is_greedy());
  EXPECT_FALSE(SamplingParams{.temperature = 1e-5f}.is_greedy());
  EXPECT_FALSE(SamplingParams{}.is_greedy());
}

}  // namespace
}  // namespace vllm_metal
