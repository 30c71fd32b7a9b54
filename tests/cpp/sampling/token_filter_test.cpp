// SPDX-License-Identifier: Apache-2.0
#include "sampling/token_filter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "reference.h"
#include "sampling/top_k.h"

namespace vllm_metal {
namespace {

using reference::kInfinity;
using testing::ElementsAre;

std::vector<Candidate> keep(std::span<const float> logits, const FilterParams& filter) {
  RowSoftmax softmax;
  softmax.reset(logits, max_logit(logits));
  TokenFilter kept;
  const auto span = kept.keep(softmax, filter);
  return {span.begin(), span.end()};
}

std::vector<int> kept_ids(std::span<const float> logits, const FilterParams& filter) {
  std::vector<int> ids;
  for (const Candidate& candidate : keep(logits, filter)) ids.push_back(candidate.token_id);
  return ids;
}

void expect_reference_distribution(std::span<const float> logits, const FilterParams& filter) {
  const auto kept = keep(logits, filter);
  const auto expected =
      reference::distribution(logits, filter.temperature, filter.top_k, filter.top_p, filter.min_p);
  double sum = 0;
  for (const Candidate& candidate : kept) sum += candidate.weight;
  std::vector<double> actual(logits.size(), 0.0);
  int previous = -1;
  for (const Candidate& candidate : kept) {
    EXPECT_GT(candidate.token_id, previous);
    EXPECT_EQ(candidate.logit, logits[candidate.token_id]);
    previous = candidate.token_id;
    actual[candidate.token_id] = candidate.weight / sum;
  }
  for (size_t id = 0; id < logits.size(); ++id) {
    ASSERT_NEAR(actual[id], expected[id], 1e-9 + 2e-6 * expected[id])
        << "token " << id << ", temperature " << filter.temperature << ", top_k " << filter.top_k
        << ", top_p " << filter.top_p;
  }
}

TEST(KthLargest, AgreesWithASort) {
  std::vector<float> scratch;
  for (int size : {1, 2, 63, 64, 65, 1000}) {
    for (float step : {0.0f, 0.5f}) {
      const auto logits = reference::random_logits(size, 2.0f, size, step);
      const auto ids = reference::ranking(logits);
      for (int k = 1; k <= size; k += 1 + size / 50) {
        EXPECT_EQ(kth_largest(logits, k, scratch), logits[ids[k - 1]]) << size << " " << k;
      }
    }
  }
}

TEST(KthLargest, IsTheSameForRisingAndFallingValues) {
  std::vector<float> scratch;
  std::vector<float> values(5000);
  std::iota(values.begin(), values.end(), -2500.0f);
  EXPECT_EQ(kth_largest(values, 50, scratch), 2450.0f);
  std::reverse(values.begin(), values.end());
  EXPECT_EQ(kth_largest(values, 50, scratch), 2450.0f);
}

TEST(KthLargest, IsMinusInfinityWhereTooFewAreAbove) {
  std::vector<float> scratch;
  const std::vector<float> values = {-kInfinity, 1.0f, -kInfinity, 2.0f};
  EXPECT_EQ(kth_largest(values, 2, scratch), 1.0f);
  EXPECT_EQ(kth_largest(values, 3, scratch), -kInfinity);
}

TEST(TokenFilter, TopKKeepsAllEqualToTheKth) {
  const std::vector<float> logits = {1, 3, 2, 2, 0, 2, 3};
  EXPECT_THAT(kept_ids(logits, {.top_k = 1}), ElementsAre(1, 6));
  EXPECT_THAT(kept_ids(logits, {.top_k = 2}), ElementsAre(1, 6));
  EXPECT_THAT(kept_ids(logits, {.top_k = 3}), ElementsAre(1, 2, 3, 5, 6));
  EXPECT_THAT(kept_ids(logits, {.top_k = 6}), ElementsAre(0, 1, 2, 3, 5, 6));
}

TEST(TokenFilter, TopPKeepsTheTokenThatReachesIt) {
  // Probabilities 1/8, 1/2, 1/4, 1/8.
  const float ln2 = std::log(2.0f);
  const std::vector<float> logits = {-2 * ln2, 0, -ln2, -2 * ln2};
  EXPECT_THAT(kept_ids(logits, {.top_p = 1e-30f}), ElementsAre(1));
  EXPECT_THAT(kept_ids(logits, {.top_p = 0.49f}), ElementsAre(1));
  EXPECT_THAT(kept_ids(logits, {.top_p = 0.51f}), ElementsAre(1, 2));
  EXPECT_THAT(kept_ids(logits, {.top_p = 0.74f}), ElementsAre(1, 2));
  EXPECT_THAT(kept_ids(logits, {.top_p = 0.76f}), ElementsAre(0, 1, 2));
  EXPECT_THAT(kept_ids(logits, {.top_p = 0.88f}), ElementsAre(0, 1, 2, 3));
}

TEST(TokenFilter, TopPKeepsTheLowerOfEqualIds) {
  const std::vector<float> logits(8, 1.5f);
  EXPECT_THAT(kept_ids(logits, {.top_p = 1e-30f}), ElementsAre(0));
  EXPECT_THAT(kept_ids(logits, {.top_p = 0.5f}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(kept_ids(logits, {.top_p = 0.51f}), ElementsAre(0, 1, 2, 3, 4));
}

TEST(TokenFilter, TopPIsOfWhatTopKLeft) {
  const std::vector<float> logits(8, 0.0f);
  std::vector<float> peaked = logits;
  peaked[2] = peaked[5] = 1.0f;
  // Alone, 0.6 would keep tokens of both kinds; of the two that top-k left it needs both.
  EXPECT_THAT(kept_ids(peaked, {.top_k = 2, .top_p = 0.6f}), ElementsAre(2, 5));
  EXPECT_THAT(kept_ids(peaked, {.top_k = 2, .top_p = 0.4f}), ElementsAre(2));
}

TEST(TokenFilter, DropsTokensWithoutWeight) {
  const std::vector<float> logits = {-kInfinity, 0, -200, 1, -kInfinity};
  EXPECT_THAT(kept_ids(logits, {}), ElementsAre(1, 3));
  EXPECT_THAT(kept_ids(logits, {.top_k = 4}), ElementsAre(1, 3));
  EXPECT_THAT(kept_ids(logits, {.top_k = 4, .top_p = 0.999999f}), ElementsAre(1, 3));
}

TEST(TokenFilter, InfiniteLogitsShareAllProbability) {
  const std::vector<float> logits = {1, kInfinity, -kInfinity, kInfinity};
  for (float temperature : {0.01f, 1.0f, 50.0f}) {
    EXPECT_THAT(kept_ids(logits, {.temperature = temperature}), ElementsAre(1, 3));
    EXPECT_THAT(kept_ids(logits, {.temperature = temperature, .top_p = 0.4f}), ElementsAre(1));
    EXPECT_THAT(kept_ids(logits, {.temperature = temperature, .top_k = 3}), ElementsAre(1, 3));
  }
}

TEST(TokenFilter, AgreesWithTheFloat64Reference) {
  uint32_t seed = 0;
  for (int size : {1, 7, 64, 1000, 5000}) {
    for (float deviation : {0.1f, 3.0f, 10.0f}) {
      const auto logits = reference::random_logits(size, deviation, ++seed);
      for (float temperature : {0.2f, 1.0f, 1.7f}) {
        for (int top_k : {0, 1, 5, 50, 4999}) {
          for (float top_p : {0.05f, 0.5f, 0.9f, 0.95f, 1.0f}) {
            expect_reference_distribution(
                logits,
                {.temperature = temperature, .top_k = std::min(top_k, size), .top_p = top_p});
          }
        }
      }
    }
  }
}

TEST(TokenFilter, AgreesWithTheReferenceWhereManyLogitsAreEqual) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    const auto logits = reference::random_logits(500, 2.0f, seed, 0.5f);
    for (int top_k : {0, 3, 100}) {
      for (float top_p : {0.1f, 0.7f, 0.93f}) {
        expect_reference_distribution(logits, {.top_k = top_k, .top_p = top_p});
      }
    }
  }
}

}  // namespace
}  // namespace vllm_metal
