// SPDX-License-Identifier: Apache-2.0
#include "sampling/prompt_logprobs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "reference.h"

namespace vllm_metal {
namespace {

using reference::kInfinity;
using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr int kVocabSize = 50;
const std::vector<int32_t> kPrompt = {4, 7, 7, 49, 0, 13};

PromptLogprobs make_scores(const SamplingParams& params, LogprobsMode mode,
                           std::vector<int32_t> prompt = kPrompt) {
  return PromptLogprobs(std::make_shared<const SamplingParams>(params),
                        {.vocab_size = kVocabSize, .logprobs_mode = mode}, std::move(prompt));
}

std::vector<float> prompt_logits() {
  return reference::random_logits(kVocabSize * static_cast<int>(kPrompt.size()), 3.0f, 11);
}

std::span<const float> row_of(const std::vector<float>& logits, int row) {
  return std::span(logits).subspan(static_cast<size_t>(row) * kVocabSize, kVocabSize);
}

TEST(PromptLogprobs, AgreeWithTheReferenceInEveryMode) {
  const auto logits = prompt_logits();
  for (LogprobsMode mode : {LogprobsMode::kRawLogprobs, LogprobsMode::kProcessedLogprobs,
                            LogprobsMode::kRawLogits, LogprobsMode::kProcessedLogits}) {
    const bool are_logits =
        mode == LogprobsMode::kRawLogits || mode == LogprobsMode::kProcessedLogits;
    for (int count : {0, 3, -1}) {
      // Temperature and penalties are the answer's, not the prompt's.
      PromptLogprobs scores = make_scores(
          {.temperature = 0.3f, .repetition_penalty = 2.0f, .num_prompt_logprobs = count}, mode);
      scores.add(0, logits);
      const Logprobs& actual = scores.logprobs();
      const int width = 1 + (count == -1 ? kVocabSize : count);
      ASSERT_EQ(actual.width, width);
      ASSERT_EQ(actual.ranks.size(), kPrompt.size() - 1);
      for (size_t row = 0; row + 1 < kPrompt.size(); ++row) {
        const auto expected = reference::log_softmax(row_of(logits, static_cast<int>(row)));
        const auto ids = reference::ranking(row_of(logits, static_cast<int>(row)));
        EXPECT_EQ(ids[actual.ranks[row] - 1], kPrompt[row + 1]);
        for (int i = 0; i < width; ++i) {
          const size_t place = row * static_cast<size_t>(width) + static_cast<size_t>(i);
          const int id = actual.token_ids[place];
          EXPECT_EQ(id, i == 0 ? kPrompt[row + 1] : ids[i - 1]);
          EXPECT_NEAR(actual.values[place],
                      are_logits ? row_of(logits, static_cast<int>(row))[id] : expected[id], 4e-6);
        }
      }
    }
  }
}

TEST(PromptLogprobs, ChunksInAnyOrderGiveTheWhole) {
  const auto logits = prompt_logits();
  const SamplingParams params{.num_prompt_logprobs = 2,
                              .prompt_logprob_token_ids = {1, -1, 2, 3},
                              .prompt_logprob_ids_per_row = 2,
                              .prompt_logprob_start = 1};
  PromptLogprobs whole = make_scores(params, LogprobsMode::kRawLogprobs);
  whole.add(0, logits);
  PromptLogprobs chunked = make_scores(params, LogprobsMode::kRawLogprobs);
  const std::span<const float> all(logits);
  chunked.add(4, all.subspan(4 * kVocabSize));
  chunked.add(1, all.subspan(1 * kVocabSize, 3 * kVocabSize));
  chunked.add(0, all.first(kVocabSize));
  chunked.add(100, all.first(kVocabSize));  // past the prompt
  EXPECT_EQ(chunked.logprobs().token_ids, whole.logprobs().token_ids);
  EXPECT_EQ(chunked.logprobs().values, whole.logprobs().values);
  EXPECT_EQ(chunked.logprobs().ranks, whole.logprobs().ranks);
  EXPECT_EQ(chunked.token_id_scores(), whole.token_id_scores());
}

TEST(PromptLogprobs, ScoreTheGivenIdsOfEachRow) {
  const auto logits = prompt_logits();
  const SamplingParams params{.prompt_logprob_token_ids = {5, 6, -1, -1, 0, 49},
                              .prompt_logprob_ids_per_row = 2,
                              .prompt_logprob_start = 2};
  for (LogprobsMode mode : {LogprobsMode::kRawLogprobs, LogprobsMode::kRawLogits}) {
    PromptLogprobs scores = make_scores(params, mode);
    EXPECT_EQ(scores.logprobs().width, 0);
    scores.add(0, logits);
    const auto score = [&](int row, int id) {
      return mode == LogprobsMode::kRawLogits
                 ? row_of(logits, row)[id]
                 : static_cast<float>(reference::log_softmax(row_of(logits, row))[id]);
    };
    EXPECT_THAT(
        scores.token_id_scores(),
        ElementsAre(testing::FloatNear(score(2, 5), 4e-6f), testing::FloatNear(score(2, 6), 4e-6f),
                    -kInfinity, -kInfinity, testing::FloatNear(score(4, 0), 4e-6f),
                    testing::FloatNear(score(4, 49), 4e-6f)));
  }
}

TEST(PromptLogprobs, RowsOfNaNAreUnscored) {
  std::vector<float> logits(kVocabSize, 1.0f);
  logits[3] = std::nanf("");
  PromptLogprobs scores = make_scores({.num_prompt_logprobs = 1}, LogprobsMode::kRawLogprobs);
  scores.add(0, logits);
  EXPECT_THAT(scores.logprobs().values, Each(-kInfinity));
}

TEST(PromptLogprobs, APromptOfOneTokenHasNoRows) {
  PromptLogprobs scores = make_scores({.num_prompt_logprobs = 1}, LogprobsMode::kRawLogprobs, {3});
  scores.add(0, std::vector<float>(kVocabSize, 1.0f));
  EXPECT_EQ(scores.logprobs().width, 2);
  EXPECT_TRUE(scores.logprobs().ranks.empty());
}

TEST(PromptLogprobs, RefusesWhatDoesNotFit) {
  const auto error_of = [](const SamplingParams& params, std::vector<int32_t> prompt = kPrompt) {
    try {
      make_scores(params, LogprobsMode::kRawLogprobs, std::move(prompt));
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const auto of_ids = [](std::vector<int32_t> ids, int start) {
    return SamplingParams{.prompt_logprob_token_ids = std::move(ids),
                          .prompt_logprob_ids_per_row = 1,
                          .prompt_logprob_start = start};
  };
  EXPECT_THAT(error_of(of_ids({50}, 0)), AllOf(HasSubstr("[-1, 50)"), HasSubstr("got 50")));
  EXPECT_THAT(error_of(of_ids({-2}, 0)), HasSubstr("got -2"));
  EXPECT_EQ(error_of(of_ids({1, 1}, 3)), "");
  EXPECT_THAT(error_of(of_ids({1, 1}, 4)), AllOf(HasSubstr("before 6"), HasSubstr("end at 6")));
  EXPECT_THAT(error_of({.num_prompt_logprobs = 1}, {}), HasSubstr("must not be empty"));
  EXPECT_THAT(error_of({.num_prompt_logprobs = 1}, {50}), HasSubstr("prompt_token_ids"));
  PromptLogprobs scores = make_scores({.num_prompt_logprobs = 1}, LogprobsMode::kRawLogprobs);
  EXPECT_THROW(scores.add(0, std::vector<float>(kVocabSize + 1)), std::invalid_argument);
  EXPECT_THROW(scores.add(-1, std::vector<float>(kVocabSize)), std::invalid_argument);
}

}  // namespace
}  // namespace vllm_metal
