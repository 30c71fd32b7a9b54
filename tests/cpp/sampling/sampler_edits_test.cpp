// SPDX-License-Identifier: Apache-2.0
// Masks, scores and their combinations as a whole row sees them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "reference.h"
#include "sample_one.h"

namespace vllm_metal {
namespace {

using reference::kInfinity;
using testing::ElementsAre;

constexpr LogprobsMode kModes[] = {LogprobsMode::kRawLogprobs, LogprobsMode::kRawLogits,
                                   LogprobsMode::kProcessedLogprobs,
                                   LogprobsMode::kProcessedLogits};

std::vector<int32_t> bitmask_of(const std::vector<int>& ids, int vocab_size) {
  std::vector<uint32_t> words((vocab_size + 31) / 32, 0);
  for (int id : ids) words[id / 32] |= uint32_t{1} << id % 32;
  return {words.begin(), words.end()};
}

TEST(SamplerEdits, OnlyTokensOfTheMasksAreDrawn) {
  const auto logits = reference::random_logits(100, 3.0f, 1);
  const auto bitmask = bitmask_of({3, 40, 64, 99}, 100);
  const std::vector<int32_t> allowed = {3, 64, 5};
  for (uint64_t seed = 0; seed < 200; ++seed) {
    EXPECT_THAT(token_of(logits, {}, {.seed = seed, .bitmask = bitmask.data()}),
                testing::AnyOf(3, 40, 64, 99));
    EXPECT_THAT(token_of(logits, {.allowed_token_ids = allowed}, {.seed = seed}),
                testing::AnyOf(3, 5, 64));
    EXPECT_THAT(
        token_of(logits, {.allowed_token_ids = allowed}, {.seed = seed, .bitmask = bitmask.data()}),
        testing::AnyOf(3, 64));
  }
}

TEST(SamplerEdits, FailsWhereMasksLeaveNothing) {
  const auto logits = reference::random_logits(70, 1.0f, 2);
  const auto none = bitmask_of({}, 70);
  const auto three = bitmask_of({3}, 70);
  for (float temperature : {0.0f, 1.0f}) {
    const SamplingParams params{.temperature = temperature, .num_logprobs = 1};
    const SampleOutput output = sample_one(logits, params, {.bitmask = none.data()});
    EXPECT_EQ(output.token_ids[0], SampleOutput::kFailed);
    EXPECT_EQ(output.logprobs.ranks[0], 0);
    const SamplingParams other{.temperature = temperature,
                               .allowed_token_ids = std::vector<int32_t>{4}};
    EXPECT_EQ(token_of(logits, other, {.bitmask = three.data()}), SampleOutput::kFailed);
    EXPECT_EQ(token_of({1, 2}, {.temperature = temperature, .bad_words_token_ids = {{0}, {1}}}),
              SampleOutput::kFailed);
  }
}

TEST(SamplerEdits, AFailedRowDoesNotCount) {
  const SamplerConfig config{.vocab_size = 2};
  SamplingState state = make_state(config, {});
  const SampleRow row{&state};
  sample(config, std::vector<float>{std::nanf(""), 0}, {&row, 1});
  EXPECT_EQ(state.num_output_tokens(), 0);
  sample(config, std::vector<float>{1, 0}, {&row, 1});
  EXPECT_EQ(state.num_output_tokens(), 1);
}

TEST(SamplerEdits, AGrammarAtItsEndMayStopBeforeMinTokens) {
  const auto logits = reference::random_logits(40, 1.0f, 3);
  const auto stop_only = bitmask_of({7}, 40);
  const auto stop_and_more = bitmask_of({7, 8}, 40);
  SamplingParams params{
      .temperature = 0, .min_tokens = 5, .all_stop_token_ids = {7, 9}, .has_grammar = true};
  EXPECT_EQ(token_of(logits, params, {.bitmask = stop_only.data()}), 7);
  EXPECT_EQ(token_of(logits, params, {.bitmask = stop_and_more.data()}), 8);
  params.has_grammar = false;
  EXPECT_EQ(token_of(logits, params, {.bitmask = stop_only.data()}), SampleOutput::kFailed);
}

TEST(SamplerEdits, NaNOutsideOfTheMasksDoesNoHarm) {
  std::vector<float> logits(40, 1.0f);
  logits[5] = std::nanf("");
  const auto bitmask = bitmask_of({3}, 40);
  EXPECT_EQ(token_of(logits, {.num_logprobs = 1}, {.bitmask = bitmask.data()}), 3);
  // A raw score of a row with NaN would be NaN.
  const SamplingParams params{.allowed_token_ids = std::vector<int32_t>{3}};
  EXPECT_EQ(token_of(logits, params), 3);
  SamplingParams scored = params;
  scored.num_logprobs = 1;
  EXPECT_EQ(token_of(logits, scored), SampleOutput::kFailed);
}

// The row of which each mode scores, computed plainly.
std::vector<double> expected_scores(const std::vector<float>& logits, const SamplingParams& params,
                                    LogprobsMode mode) {
  std::vector<float> row = logits;
  if (mode == LogprobsMode::kProcessedLogprobs || mode == LogprobsMode::kProcessedLogits) {
    for (const auto& [id, bias] : params.logit_bias) row[id] += bias;
    if (!params.is_greedy()) {
      const auto kept = reference::distribution(row, params.temperature, params.top_k, params.top_p,
                                                params.min_p);
      for (size_t id = 0; id < row.size(); ++id)
        row[id] = kept[id] > 0 ? row[id] / params.temperature : -kInfinity;
    }
  }
  if (mode == LogprobsMode::kRawLogits || mode == LogprobsMode::kProcessedLogits)
    return {row.begin(), row.end()};
  return reference::log_softmax(row);
}

TEST(SamplerEdits, EveryModeScoresWhatItSays) {
  const auto logits = reference::random_logits(300, 2.0f, 4);
  const std::vector<SamplingParams> kinds = {
      {},
      {.temperature = 0},
      {.temperature = 0, .logit_bias = {{5, 30.0f}}},
      {.temperature = 0.6f},
      {.temperature = 1.4f, .top_k = 17},
      {.top_p = 0.8f},
      {.temperature = 0.9f, .min_p = 0.05f, .logit_bias = {{5, 4.0f}, {6, -4.0f}}},
      {.temperature = 0.8f, .top_p = 0.9f, .top_k = 30, .min_p = 0.01f},
  };
  for (LogprobsMode mode : kModes) {
    for (SamplingParams params : kinds) {
      params.num_logprobs = 40;
      const SamplerConfig config{.vocab_size = 300, .logprobs_mode = mode};
      const SampleOutput output = sample_one(config, logits, params, {.seed = 9});
      const auto expected = expected_scores(logits, params, mode);
      const std::vector<float> expected_row(expected.begin(), expected.end());
      const auto ids = reference::ranking(expected_row);
      ASSERT_EQ(output.logprobs.width, 41);
      EXPECT_EQ(output.logprobs.token_ids[0], output.token_ids[0]);
      EXPECT_EQ(expected_row[ids[output.logprobs.ranks[0] - 1]], expected_row[output.token_ids[0]]);
      for (int i = 0; i <= 40; ++i) {
        const int id = output.logprobs.token_ids[i];
        if (i > 0) {
          EXPECT_EQ(id, ids[i - 1]);
        }
        if (expected[id] == -kInfinity) {
          EXPECT_EQ(output.logprobs.values[i], -kInfinity);
        } else {
          EXPECT_NEAR(output.logprobs.values[i], expected[id], 5e-6);
        }
      }
    }
  }
}

TEST(SamplerEdits, RawScoresAreUnderTheGrammarOnly) {
  const std::vector<float> logits = {1, 2, 3, 4};
  const auto bitmask = bitmask_of({0, 1, 3}, 4);
  const SamplerConfig config{.vocab_size = 4, .logprobs_mode = LogprobsMode::kRawLogits};
  const SamplingParams params{
      .temperature = 0, .logit_bias = {{0, 50.0f}, {1, 1.0f}}, .num_logprobs = 4};
  const SampleOutput output = sample_one(config, logits, params, {.bitmask = bitmask.data()});
  EXPECT_THAT(output.logprobs.token_ids, ElementsAre(0, 3, 1, 0, 2));
  EXPECT_THAT(output.logprobs.values, ElementsAre(1, 4, 2, 1, -kInfinity));
  EXPECT_THAT(output.logprobs.ranks, ElementsAre(3));
}

TEST(SamplerEdits, GivenTokenIdsAreScoredInsteadOfTheBest) {
  const std::vector<float> logits = {1, 2, 3, 4};
  const SamplerConfig config{.vocab_size = 4, .logprobs_mode = LogprobsMode::kRawLogits};
  const SampleOutput alone = sample_one(
      config, logits, {.temperature = 0, .num_logprobs = 3, .logprob_token_ids = {2, 0}});
  EXPECT_THAT(alone.logprobs.token_ids, ElementsAre(3, 2, 0));
  EXPECT_THAT(alone.logprobs.values, ElementsAre(4, 3, 1));
  EXPECT_THAT(alone.logprobs.ranks, ElementsAre(1));

  SamplingState first = make_state(config, {.temperature = 0, .logprob_token_ids = {2}});
  SamplingState second = make_state(config, {.temperature = 0, .num_logprobs = 2});
  const std::vector<SampleRow> rows = {{&first}, {&second}};
  const std::vector<float> both = {1, 2, 3, 4, 9, 8, 7, 6};
  const Logprobs logprobs = sample(config, both, rows).logprobs;
  EXPECT_THAT(logprobs.token_ids, ElementsAre(3, 2, 0, 0, 0, 1));
  EXPECT_THAT(logprobs.values, ElementsAre(4, 3, -kInfinity, 9, 9, 8));
}

// Random mixtures of everything: a batch gives each row what it gets alone, over several draws.
TEST(SamplerEdits, AMixedBatchIsItsRowsAlone) {
  constexpr int kVocabSize = 200;
  constexpr size_t kNumRows = 30;
  std::mt19937 engine(5);
  const auto maybe = [&] { return engine() % 3 == 0; };
  const auto id = [&] { return static_cast<int32_t>(engine() % kVocabSize); };
  for (LogprobsMode mode : kModes) {
    const SamplerConfig config{.vocab_size = kVocabSize,
                               .logprobs_mode = mode,
                               .reasoning_start_token_ids = {1},
                               .reasoning_end_token_ids = {2, 3}};
    std::vector<SamplingState> batched, alone;
    std::vector<std::vector<int32_t>> bitmasks;
    for (size_t row = 0; row < kNumRows; ++row) {
      SamplingParams params{.temperature = maybe() ? 0.0f : 1.2f};
      if (maybe()) params.top_k = 20;
      if (maybe()) params.top_p = 0.9f;
      if (maybe()) params.min_p = 0.02f;
      if (maybe()) params.frequency_penalty = 0.7f;
      if (maybe()) params.repetition_penalty = 1.5f;
      if (maybe()) params.logit_bias = {{id(), 3.0f}, {id(), -3.0f}};
      if (maybe()) params.allowed_token_ids = {{id(), id(), id(), 0}};
      if (maybe()) params.bad_words_token_ids = {{id()}, {id(), id()}};
      if (maybe()) params.min_tokens = 2, params.all_stop_token_ids = {id()};
      if (maybe()) params.thinking_token_budget = 1;
      if (maybe()) params.num_logprobs = static_cast<int>(engine() % 5);
      if (maybe()) params.logprob_token_ids = {id(), id()};
      params.has_grammar = maybe();
      std::vector<int32_t> bitmask;
      for (int word = 0; word < (kVocabSize + 31) / 32; ++word)
        bitmask.push_back(static_cast<int32_t>(engine() | 1));
      bitmasks.push_back(params.has_grammar ? bitmask : std::vector<int32_t>());
      const Request request{.seed = row, .token_ids = {id(), 1, id()}, .num_output_tokens = 1};
      batched.push_back(make_state(config, params, request));
      alone.push_back(make_state(config, params, request));
    }
    for (uint32_t step = 0; step < 4; ++step) {
      const auto logits = reference::random_logits(kVocabSize * kNumRows, 2.0f, step);
      std::vector<SampleRow> rows;
      for (size_t row = 0; row < kNumRows; ++row)
        rows.push_back({&batched[row], bitmasks[row].empty() ? nullptr : bitmasks[row].data()});
      const SampleOutput batch = sample(config, logits, rows);
      const auto width = static_cast<size_t>(batch.logprobs.width);
      for (size_t row = 0; row < kNumRows; ++row) {
        const SampleRow one{&alone[row], rows[row].bitmask};
        const SampleOutput expected =
            sample(config, std::span(logits).subspan(row * kVocabSize, kVocabSize), {&one, 1});
        ASSERT_EQ(batch.token_ids[row], expected.token_ids[0]) << row << " " << step;
        for (size_t i = 0; i < static_cast<size_t>(expected.logprobs.width); ++i) {
          ASSERT_EQ(batch.logprobs.token_ids[row * width + i], expected.logprobs.token_ids[i]);
          ASSERT_EQ(batch.logprobs.values[row * width + i], expected.logprobs.values[i]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace vllm_metal
