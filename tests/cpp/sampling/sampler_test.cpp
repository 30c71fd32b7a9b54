// SPDX-License-Identifier: Apache-2.0
#include "sampling/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "reference.h"
#include "sample_one.h"

namespace vllm_metal {
namespace {

using reference::kInfinity;
using testing::ElementsAre;
using testing::ElementsAreArray;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
const SamplingParams kGreedy{.temperature = 0.0f};

TEST(Sampler, GreedyTakesTheLowestOfEqualIds) {
  EXPECT_EQ(token_of({1, 3, 2, 3}, kGreedy), 1);
  EXPECT_EQ(token_of({0, -0.0f, 0}, kGreedy), 0);
  EXPECT_EQ(token_of({-kInfinity, -5, -4}, kGreedy), 2);
  std::vector<float> logits(1000, 0.5f);
  EXPECT_EQ(token_of(logits, kGreedy), 0);
  logits[777] = logits[999] = 0.6f;
  EXPECT_EQ(token_of(logits, kGreedy), 777);
  EXPECT_EQ(token_of(logits, {.temperature = 9e-6f}), 777);
}

TEST(Sampler, FailsOnNaNAndWithoutAnyTokenToDraw) {
  const SamplingParams random{.num_logprobs = 1};
  for (const SamplingParams& params : {kGreedy, random}) {
    for (int place = 0; place < 40; ++place) {
      std::vector<float> logits(40, 1.0f);
      logits[place] = kNaN;
      EXPECT_EQ(token_of(logits, params), SampleOutput::kFailed);
    }
    EXPECT_EQ(token_of({-kInfinity, -kInfinity}, params), SampleOutput::kFailed);
    EXPECT_EQ(token_of({kInfinity, kNaN}, params), SampleOutput::kFailed);
  }
  const SampleOutput failed = sample_one({kNaN, 0}, random);
  EXPECT_THAT(failed.logprobs.values, ElementsAre(-kInfinity, -kInfinity));
  EXPECT_THAT(failed.logprobs.token_ids, ElementsAre(0, 0));
  EXPECT_THAT(failed.logprobs.ranks, ElementsAre(0));
}

TEST(Sampler, InfiniteLogitsWin) {
  const std::vector<float> logits = {1, 2, kInfinity, 3};
  EXPECT_EQ(token_of(logits, kGreedy), 2);
  for (uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_EQ(token_of(logits, {}, {.seed = seed}), 2);
    EXPECT_EQ(token_of(logits, {.top_p = 0.3f, .top_k = 2}, {.seed = seed}), 2);
  }
}

TEST(Sampler, FiltersThatLeaveOneTokenAreGreedy) {
  const auto logits = reference::random_logits(3000, 1.0f, 5);
  const int32_t expected = token_of(logits, kGreedy);
  for (uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_EQ(token_of(logits, {.top_k = 1}, {.seed = seed}), expected);
    EXPECT_EQ(token_of(logits, {.top_p = 1e-9f}, {.seed = seed}), expected);
    EXPECT_EQ(token_of(logits, {.temperature = 1e-5f}, {.seed = seed}), expected);
  }
}

TEST(Sampler, TopKOfTheVocabularyOrMoreKeepsAll) {
  const auto logits = reference::random_logits(300, 1.0f, 6);
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const int32_t expected = token_of(logits, {}, {.seed = seed});
    for (int top_k : {-1, 0, 300, 301, 1 << 30}) {
      EXPECT_EQ(token_of(logits, {.top_k = top_k}, {.seed = seed}), expected);
    }
  }
}

// Pearson's statistic of draws against the float64 distribution, for fixed seeds. Its mean is the
// number of degrees of freedom n and its deviation sqrt(2 n); the bound is 5 of those.
void expect_drawn_from(const std::vector<float>& logits, const SamplingParams& params) {
  constexpr int kDraws = 20'000;
  const auto expected =
      reference::distribution(logits, params.temperature, params.top_k, params.top_p, params.min_p);
  std::vector<int> counts(logits.size(), 0);
  for (int i = 0; i < kDraws; ++i) {
    // Half as a request goes on, half as new requests start.
    const bool same_request = i % 2 == 0;
    ++counts.at(
        token_of(logits, params,
                 at_index(same_request ? 42 : static_cast<uint64_t>(i), same_request ? i : 0)));
  }
  double statistic = 0;
  int degrees = -1;
  double rare_expected = 0;
  double rare_count = 0;
  for (size_t id = 0; id < logits.size(); ++id) {
    const double mean = expected[id] * kDraws;
    if (expected[id] == 0) {
      EXPECT_EQ(counts[id], 0) << "token " << id;
    }
    if (mean < 10) {  // too few for the approximation: counted together
      rare_expected += mean;
      rare_count += counts[id];
      continue;
    }
    statistic += (counts[id] - mean) * (counts[id] - mean) / mean;
    ++degrees;
  }
  if (rare_expected >= 10) {
    statistic += (rare_count - rare_expected) * (rare_count - rare_expected) / rare_expected;
    ++degrees;
  }
  ASSERT_GT(degrees, 2);
  EXPECT_LT(statistic, degrees + 5 * std::sqrt(2.0 * degrees));
}

TEST(Sampler, DrawsFollowTheDistribution) {
  const auto logits = reference::random_logits(600, 2.0f, 7);
  expect_drawn_from(logits, {});
  expect_drawn_from(logits, {.temperature = 0.5f});
  expect_drawn_from(logits, {.temperature = 1.5f});
  expect_drawn_from(logits, {.top_k = 20});
  expect_drawn_from(logits, {.top_p = 0.8f});
  expect_drawn_from(logits, {.temperature = 0.8f, .top_p = 0.9f, .top_k = 40});
}

TEST(Sampler, TheSameSeedAndIndexDrawTheSameToken) {
  const auto logits = reference::random_logits(1000, 1.0f, 8);
  int num_changed_by_seed = 0;
  int num_changed_by_index = 0;
  for (int i = 0; i < 100; ++i) {
    const int32_t token = token_of(logits, {}, at_index(5, i));
    EXPECT_EQ(token_of(logits, {}, at_index(5, i)), token);
    num_changed_by_seed += token_of(logits, {}, at_index(6, i)) != token;
    num_changed_by_index += token_of(logits, {}, at_index(5, i + 1)) != token;
  }
  EXPECT_GT(num_changed_by_seed, 90);
  EXPECT_GT(num_changed_by_index, 90);
}

// A batch of every kind of request, in which each row must be what it is alone.
TEST(Sampler, ARowIsTheSameAloneAndInABatch) {
  constexpr int kVocabSize = 700;
  const std::vector<SamplingParams> kinds = {
      {},
      kGreedy,
      {.temperature = 0.7f, .top_p = 0.9f},
      {.top_k = 10, .num_logprobs = 3},
      {.temperature = 1.3f, .top_p = 0.5f, .top_k = 50, .num_logprobs = 0},
      {.temperature = 0.0f, .num_logprobs = 8},
      {.num_logprobs = 700},
      {.temperature = 2.0f, .num_logprobs = -1},
  };
  constexpr size_t kNumRows = 40;
  const SamplerConfig config{.vocab_size = kVocabSize};
  std::vector<std::vector<float>> logits;
  std::vector<SamplingState> states;
  const auto request_of = [](size_t row) {
    return at_index(row * 1000, static_cast<int64_t>(row));
  };
  for (size_t row = 0; row < kNumRows; ++row) {
    logits.push_back(reference::random_logits(kVocabSize, 2.0f, 100 + row));
    if (row == 11) logits.back()[60] = kNaN;
    states.push_back(make_state(config, kinds[row % kinds.size()], request_of(row)));
  }
  std::vector<float> all_logits;
  std::vector<SampleRow> rows;
  for (size_t row = 0; row < kNumRows; ++row) {
    all_logits.insert(all_logits.end(), logits[row].begin(), logits[row].end());
    rows.push_back({&states[row]});
  }
  const SampleOutput batch = sample(config, all_logits, rows);
  ASSERT_EQ(batch.token_ids.size(), kNumRows);
  ASSERT_EQ(batch.logprobs.width, 1 + kVocabSize);
  ASSERT_EQ(batch.logprobs.values.size(), kNumRows * (1 + kVocabSize));
  for (size_t row = 0; row < kNumRows; ++row) {
    const SampleOutput alone =
        sample_one(config, logits[row], kinds[row % kinds.size()], request_of(row));
    EXPECT_EQ(batch.token_ids[row], alone.token_ids[0]);
    const Logprobs& expected = alone.logprobs;
    const size_t begin = row * batch.logprobs.width;
    const auto ids = std::span(batch.logprobs.token_ids).subspan(begin, batch.logprobs.width);
    const auto values = std::span(batch.logprobs.values).subspan(begin, batch.logprobs.width);
    EXPECT_THAT(ids.first(expected.width), ElementsAreArray(expected.token_ids));
    EXPECT_THAT(values.first(expected.width), ElementsAreArray(expected.values));
    EXPECT_THAT(ids.subspan(expected.width), testing::Each(0));
    EXPECT_THAT(values.subspan(expected.width), testing::Each(-kInfinity));
    EXPECT_EQ(batch.logprobs.ranks[row], expected.width > 0 ? expected.ranks[0] : 0);
  }
  EXPECT_EQ(batch.token_ids[11], SampleOutput::kFailed);
}

TEST(Sampler, LogprobsAreRawWhateverTheFilters) {
  const auto logits = reference::random_logits(800, 3.0f, 9);
  const auto expected = reference::log_softmax(logits);
  const SamplingParams params{.temperature = 0.4f, .top_p = 0.7f, .top_k = 5, .num_logprobs = 10};
  const SampleOutput output = sample_one(logits, params, {.seed = 3});
  ASSERT_EQ(output.logprobs.width, 11);
  EXPECT_EQ(output.logprobs.token_ids[0], output.token_ids[0]);
  for (int i = 0; i < 11; ++i) {
    EXPECT_NEAR(output.logprobs.values[i], expected[output.logprobs.token_ids[i]], 4e-6);
  }
}

TEST(Sampler, LogprobsAreNoWiderThanTheVocabulary) {
  for (int num_logprobs : {-1, 3, 50}) {
    const SampleOutput output =
        sample_one({2, 1, 3}, {.temperature = 0.0f, .num_logprobs = num_logprobs});
    EXPECT_THAT(output.logprobs.token_ids, ElementsAre(2, 2, 0, 1));
  }
  EXPECT_EQ(sample_one({2, 1, 3}, {.num_logprobs = 0}).logprobs.width, 1);
  EXPECT_EQ(sample_one({2, 1, 3}, {}).logprobs.width, 0);
}

TEST(Sampler, AnEmptyBatchGivesAnEmptyResult) {
  const SampleOutput output = sample({.vocab_size = 10}, {}, {});
  EXPECT_TRUE(output.token_ids.empty());
  EXPECT_EQ(output.logprobs.width, 0);
}

TEST(Sampler, RefusesArgumentsThatDoNotFit) {
  const std::vector<float> logits(6, 0.0f);
  const SamplerConfig config{.vocab_size = 3};
  SamplingState first = make_state(config, {});
  SamplingState second = make_state(config, {});
  const std::vector<SampleRow> rows = {{&first}, {&second}};
  EXPECT_THROW(sample({.vocab_size = 4}, logits, rows), std::invalid_argument);
  EXPECT_THROW(sample({.vocab_size = 0}, logits, rows), std::invalid_argument);
  EXPECT_THROW(sample(config, logits, std::vector<SampleRow>{{&first}, {nullptr}}),
               std::invalid_argument);
  EXPECT_EQ(first.num_output_tokens(), 0);
  EXPECT_EQ(sample(config, logits, rows).token_ids.size(), 2u);
  EXPECT_EQ(first.num_output_tokens(), 1);
}

}  // namespace
}  // namespace vllm_metal
