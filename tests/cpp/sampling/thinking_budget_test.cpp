// SPDX-License-Identifier: Apache-2.0
#include "sampling/thinking_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sample_one.h"

namespace vllm_metal {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;

constexpr int kThought = 1;  // what the model says when left alone
constexpr int kStart = 50;
constexpr int kEnd = 60;

const SamplerConfig kOneToken{
    .vocab_size = 100, .reasoning_start_token_ids = {kStart}, .reasoning_end_token_ids = {kEnd}};
// Marks of several tokens; the forced end holds the natural one.
const SamplerConfig kManyTokens{.vocab_size = 100,
                                .reasoning_start_token_ids = {50, 51},
                                .reasoning_end_token_ids = {70, 71, 60, 61},
                                .natural_reasoning_end_token_ids = {60, 61}};

// What comes of a model that says `wanted` token by token, where nothing is forced.
std::vector<int32_t> generate(const SamplerConfig& config, int budget, std::vector<int32_t> prompt,
                              const std::vector<int32_t>& wanted) {
  ThinkingBudget thinking(budget, config, prompt);
  std::vector<int32_t> output;
  for (int32_t token_id : wanted) {
    output.push_back(thinking.forced_token().value_or(token_id));
    thinking.append(output.back());
  }
  return output;
}

TEST(ThinkingBudget, ForcesTheEndOnceUsedUp) {
  EXPECT_THAT(generate(kOneToken, 2, {5, kStart}, {1, 2, 3, 4, 5}), ElementsAre(1, 2, kEnd, 4, 5));
  EXPECT_THAT(generate(kOneToken, 0, {5, kStart}, {1, 2}), ElementsAre(kEnd, 2));
  EXPECT_THAT(generate(kOneToken, 3, {5}, {1, kStart, 2, 3, 4, 5, 6}),
              ElementsAre(1, kStart, 2, 3, 4, kEnd, 6));
}

TEST(ThinkingBudget, CountsWhatThePromptHolds) {
  EXPECT_THAT(generate(kOneToken, 3, {kStart, 7, 7}, {1, 2, 3}), ElementsAre(1, kEnd, 3));
  EXPECT_THAT(generate(kOneToken, 3, {kStart, 7, 7, 7, 7, 7}, {1, 2}), ElementsAre(kEnd, 2));
  EXPECT_THAT(generate(kOneToken, 0, {kStart, 7, kEnd}, {1, 2}), ElementsAre(1, 2));
}

TEST(ThinkingBudget, LeavesModelsAloneThatEndInTime) {
  EXPECT_THAT(generate(kOneToken, 3, {kStart}, {1, 2, kEnd, 4, 5, 6, 7}),
              ElementsAre(1, 2, kEnd, 4, 5, 6, 7));
  EXPECT_THAT(generate(kOneToken, 0, {}, {1, 2, 3}), ElementsAre(1, 2, 3));
}

TEST(ThinkingBudget, EachSectionHasTheWholeBudget) {
  EXPECT_THAT(generate(kOneToken, 2, {kStart}, {1, kEnd, 3, kStart, 1, 2, 3, 4, kStart, 1, 2, 3}),
              ElementsAre(1, kEnd, 3, kStart, 1, 2, kEnd, 4, kStart, 1, 2, kEnd));
}

TEST(ThinkingBudget, ForcesMarksOfSeveralTokensOneByOne) {
  EXPECT_THAT(generate(kManyTokens, 2, {50, 51}, {1, 1, 1, 1, 1, 1, 1}),
              ElementsAre(1, 1, 70, 71, 60, 61, 1));
  EXPECT_THAT(generate(kManyTokens, 0, {50, 51}, {1, 1, 1, 1, 1}), ElementsAre(70, 71, 60, 61, 1));
  // Half a start mark is none.
  EXPECT_THAT(generate(kManyTokens, 0, {50}, {1, 51, 1}), ElementsAre(1, 51, 1));
  EXPECT_THAT(generate(kManyTokens, 0, {50}, {51, 1, 1, 1, 1, 1}),
              ElementsAre(51, 70, 71, 60, 61, 1));
}

TEST(ThinkingBudget, EndsAtTheNaturalMark) {
  EXPECT_THAT(generate(kManyTokens, 4, {50, 51}, {1, 60, 61, 1, 1, 1, 1}),
              ElementsAre(1, 60, 61, 1, 1, 1, 1));
}

TEST(ThinkingBudget, GoesOnFromAMarkThatTheModelBegan) {
  EXPECT_THAT(generate(kManyTokens, 3, {50, 51}, {1, 70, 71, 1, 1, 1}),
              ElementsAre(1, 70, 71, 60, 61, 1));
}

TEST(ThinkingBudget, ADifferentEndStillEndsTheSection) {
  const SamplerConfig config{.vocab_size = 100,
                             .reasoning_start_token_ids = {kStart},
                             .reasoning_end_token_ids = {70, 71},
                             .natural_reasoning_end_token_ids = {kEnd}};
  EXPECT_THAT(generate(config, 1, {kStart}, {1, 1, 1, 2, 3}), ElementsAre(1, 70, 71, 2, 3));
}

TEST(ThinkingBudget, TheSamplerDrawsTheForcedToken) {
  std::vector<float> logits(100, 0.0f);
  logits[kThought] = 50;
  for (float temperature : {0.0f, 1.0f}) {
    const SamplingParams params{.temperature = temperature, .top_k = 2, .thinking_token_budget = 2};
    SamplingState state = make_state(kOneToken, params, {.token_ids = {5, kStart}});
    const SampleRow row{&state};
    std::vector<int32_t> output;
    for (int i = 0; i < 5; ++i)
      output.push_back(sample(kOneToken, logits, {&row, 1}).token_ids.at(0));
    EXPECT_THAT(output, ElementsAreArray({kThought, kThought, kEnd, kThought, kThought}));
  }
}

}  // namespace
}  // namespace vllm_metal
