// SPDX-License-Identifier: Apache-2.0
#include "sampling/sampling_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <stdexcept>

#include "reference.h"
#include "sample_one.h"

namespace vllm_metal {
namespace {

using reference::kInfinity;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

const SamplerConfig kConfig{
    .vocab_size = 10, .reasoning_start_token_ids = {8}, .reasoning_end_token_ids = {9}};

std::string error_of(const SamplingParams& params, const Request& request = {},
                     const SamplerConfig& config = kConfig) {
  try {
    make_state(config, params, request);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

std::vector<float> edited(const SamplingState& state, std::vector<float> logits) {
  state.edit(logits, state.masks_stop_tokens());
  return logits;
}

TEST(SamplingState, NamesIdsOutsideOfTheVocabulary) {
  for (int32_t id : {-1, 10, INT32_MAX}) {
    const auto expect_refused = [&](const SamplingParams& params, const char* name) {
      EXPECT_THAT(error_of(params),
                  AllOf(HasSubstr(name), HasSubstr("[0, 10)"), HasSubstr(std::to_string(id))));
    };
    expect_refused({.logit_bias = {{3, 1.0f}, {id, 1.0f}}}, "logit_bias");
    expect_refused({.allowed_token_ids = std::vector<int32_t>{0, id}}, "allowed_token_ids");
    expect_refused({.logprob_token_ids = {9, id}}, "logprob_token_ids");
    EXPECT_THAT(error_of({}, {.token_ids = {1, id}}), HasSubstr("token_ids"));
    SamplingState state = make_state(kConfig, {});
    EXPECT_THROW(state.append(id), std::invalid_argument);
    EXPECT_EQ(state.num_output_tokens(), 0);
  }
  EXPECT_EQ(error_of({.logit_bias = {{0, 1.0f}, {9, 1.0f}},
                      .allowed_token_ids = std::vector<int32_t>{0, 9},
                      .bad_words_token_ids = {{0, 9}},
                      .all_stop_token_ids = {0, 9},
                      .logprob_token_ids = {0, 9}},
                     {.token_ids = {0, 9}}),
            "");
}

// A tokenizer may know more tokens than the model.
TEST(SamplingState, TokensWithoutALogitNeedNoMask) {
  const SamplingParams params{.bad_words_token_ids = {{10}, {INT32_MAX, 2}, {2, 10}},
                              .min_tokens = 2,
                              .all_stop_token_ids = {-1, 3, 10, INT32_MAX}};
  EXPECT_EQ(error_of(params), "");
  std::vector<float> logits(10, 1.0f);
  make_state(kConfig, params).edit(logits, true);
  for (int id = 0; id < 10; ++id)
    EXPECT_EQ(logits[static_cast<size_t>(id)],
              id == 3 ? -std::numeric_limits<float>::infinity() : 1.0f);
  EXPECT_THAT(error_of({.bad_words_token_ids = {{1, -1}}}),
              HasSubstr("must not be negative but has -1"));
}

TEST(SamplingState, RefusesWhatDoesNotFit) {
  EXPECT_THAT(error_of({}, {.token_ids = {1, 2}, .num_output_tokens = 3}),
              AllOf(HasSubstr("num_output_tokens"), HasSubstr("[0, 2]"), HasSubstr("3")));
  EXPECT_THAT(error_of({}, {.num_output_tokens = -1}), HasSubstr("-1"));
  EXPECT_THAT(error_of({.top_p = 0.0f}), HasSubstr("top_p"));
  EXPECT_THAT(error_of({.thinking_token_budget = 5}, {}, {.vocab_size = 10}),
              HasSubstr("thinking_token_budget"));
  EXPECT_THROW(SamplingState(nullptr, 0, kConfig, {}, 0), std::invalid_argument);
}

TEST(SamplingState, CopiesNothingForWhatEditsNothing) {
  EXPECT_FALSE(make_state(kConfig, {}).edits_logits());
  EXPECT_FALSE(make_state(kConfig, {.temperature = 0.5f, .top_p = 0.5f, .top_k = 3, .min_p = 0.1f})
                   .edits_logits());
  // Due only now and then.
  EXPECT_FALSE(make_state(kConfig, {.presence_penalty = 1.0f}, {.token_ids = {1}}).edits_logits());
  EXPECT_FALSE(make_state(kConfig, {.bad_words_token_ids = {{1, 2}}}).edits_logits());
  EXPECT_FALSE(make_state(kConfig, {.min_tokens = 5}).edits_logits());
  EXPECT_FALSE(make_state(kConfig, {.thinking_token_budget = 0}).edits_logits());
  EXPECT_TRUE(make_state(kConfig, {.logit_bias = {{1, 1.0f}}}).edits_logits());
  EXPECT_TRUE(make_state(kConfig, {.allowed_token_ids = std::vector<int32_t>{1}}).edits_logits());
  EXPECT_TRUE(make_state(kConfig, {.min_tokens = 1, .all_stop_token_ids = {1}}).edits_logits());
  EXPECT_TRUE(make_state(kConfig, {.repetition_penalty = 2.0f}, {.token_ids = {1}}).edits_logits());
}

TEST(SamplingState, PenaltiesFollowTheTokens) {
  const std::vector<float> logits = {4, -4, 4, -4, 4, 0, 4, -4, -kInfinity, kInfinity};
  // Prompt 0, 1, 1; output 2, 3, 3.
  const Request request{.token_ids = {0, 1, 1, 2, 3, 3}, .num_output_tokens = 3};
  const auto penalised = [&](const SamplingParams& params) {
    return edited(make_state(kConfig, params, request), logits);
  };
  EXPECT_THAT(penalised({.presence_penalty = 0.5f}),
              ElementsAre(4, -4, 3.5f, -4.5f, 4, 0, 4, -4, -kInfinity, kInfinity));
  EXPECT_THAT(penalised({.frequency_penalty = 0.5f}),
              ElementsAre(4, -4, 3.5f, -5, 4, 0, 4, -4, -kInfinity, kInfinity));
  EXPECT_THAT(penalised({.frequency_penalty = -1.0f}),
              ElementsAre(4, -4, 5, -2, 4, 0, 4, -4, -kInfinity, kInfinity));
  EXPECT_THAT(penalised({.repetition_penalty = 2.0f}),
              ElementsAre(2, -8, 2, -8, 4, 0, 4, -4, -kInfinity, kInfinity));
  EXPECT_THAT(penalised({.repetition_penalty = 0.5f}),
              ElementsAre(8, -2, 8, -2, 4, 0, 4, -4, -kInfinity, kInfinity));
  EXPECT_THAT(
      penalised({.presence_penalty = 1.0f, .frequency_penalty = 0.25f, .repetition_penalty = 2}),
      ElementsAre(2, -8, 0.75f, -9.5f, 4, 0, 4, -4, -kInfinity, kInfinity));
}

TEST(SamplingState, BadWordsAreNeverCompleted) {
  const SamplingParams params{.bad_words_token_ids = {{7}, {1, 2}, {3, 1, 2}, {1, 1, 4}}};
  const auto masked_after = [&](const std::vector<int32_t>& output) {
    Request request{.token_ids = {1, 1}, .num_output_tokens = 0};  // the prompt does not count
    request.token_ids.insert(request.token_ids.end(), output.begin(), output.end());
    request.num_output_tokens = static_cast<int64_t>(output.size());
    const auto logits = edited(make_state(kConfig, params, request), std::vector<float>(10, 1));
    std::vector<int> masked;
    for (int id = 0; id < 10; ++id)
      if (logits[id] == -kInfinity) masked.push_back(id);
    return masked;
  };
  EXPECT_THAT(masked_after({}), ElementsAre(7));
  EXPECT_THAT(masked_after({1}), ElementsAre(2, 7));
  EXPECT_THAT(masked_after({1, 5}), ElementsAre(7));
  EXPECT_THAT(masked_after({5, 1, 1}), ElementsAre(2, 4, 7));
  EXPECT_THAT(masked_after({3, 1}), ElementsAre(2, 7));
}

TEST(SamplingState, MinTokensHoldsBackEveryStopToken) {
  const SamplingParams params{.min_tokens = 2, .all_stop_token_ids = {3, 5}};
  SamplingState state = make_state(kConfig, params, {.token_ids = {1, 1, 1}});
  for (int i = 0; i < 2; ++i) {
    const auto logits = edited(state, std::vector<float>(10, 1));
    EXPECT_EQ(std::count(logits.begin(), logits.end(), -kInfinity), 2);
    EXPECT_EQ(logits[3], -kInfinity);
    EXPECT_EQ(logits[5], -kInfinity);
    state.append(0);
  }
  EXPECT_FALSE(state.edits_logits());
  EXPECT_EQ(edited(state, std::vector<float>(10, 1)), std::vector<float>(10, 1));
}

TEST(SamplingState, BiasComesBeforePenaltiesAndAfterMasks) {
  const SamplingParams params{.repetition_penalty = 2.0f,
                              .logit_bias = {{0, -3.0f}, {1, 10.0f}, {4, 2.5f}, {6, -kInfinity}},
                              .bad_words_token_ids = {{1}}};
  const auto logits =
      edited(make_state(kConfig, params, {.token_ids = {0, 1}}), std::vector<float>(10, 2));
  EXPECT_EQ(logits[0], -2);  // (2 - 3) * 2: were the penalty first, 2 / 2 - 3
  EXPECT_EQ(logits[1], -kInfinity);
  EXPECT_EQ(logits[4], 4.5f);
  EXPECT_EQ(logits[6], -kInfinity);
  EXPECT_EQ(logits[7], 2);
}

// Appending token by token must leave the state that the same tokens make when a request resumes.
TEST(SamplingState, AppendingEqualsStartingWithTheSameTokens) {
  std::mt19937 engine(7);
  const std::vector<SamplingParams> kinds = {
      {.presence_penalty = 0.3f, .frequency_penalty = 0.2f, .repetition_penalty = 1.3f},
      {.bad_words_token_ids = {{1, 2}, {2, 2, 2}, {0, 1, 0, 1, 2}}},
      {.min_tokens = 20, .all_stop_token_ids = {4}},
      {.thinking_token_budget = 3},
  };
  const SamplerConfig config{.vocab_size = 5,
                             .reasoning_start_token_ids = {3, 0},
                             .reasoning_end_token_ids = {4, 1, 4, 2},
                             .natural_reasoning_end_token_ids = {4, 2}};
  for (const SamplingParams& params : kinds) {
    std::vector<int32_t> tokens;
    SamplingState appended = make_state(config, params);
    for (int i = 0; i < 200; ++i) {
      const Request request{.token_ids = tokens,
                            .num_output_tokens = static_cast<int64_t>(tokens.size())};
      const SamplingState resumed = make_state(config, params, request);
      const std::vector<float> logits = {1, -2, 3, -4, 5};
      ASSERT_EQ(edited(appended, logits), edited(resumed, logits)) << i;
      ASSERT_EQ(appended.edits_logits(), resumed.edits_logits());
      ASSERT_EQ(appended.num_output_tokens(), resumed.num_output_tokens());
      tokens.push_back(static_cast<int32_t>(engine() % 5));
      appended.append(tokens.back());
    }
  }
}

}  // namespace
}  // namespace vllm_metal
