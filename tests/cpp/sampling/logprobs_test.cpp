// SPDX-License-Identifier: Apache-2.0
#include "sampling/logprobs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "reference.h"

namespace vllm_metal {
namespace {

using reference::kInfinity;
using testing::Each;
using testing::ElementsAre;

void score(const std::vector<float>& logits, const ScoredTokens& tokens, size_t row,
           Logprobs& logprobs, LogprobsMode mode = LogprobsMode::kRawLogprobs) {
  RowSoftmax softmax;
  softmax.reset(logits, max_logit(logits));
  RowScorer().score(softmax, mode, tokens, row, logprobs);
}

Logprobs logprobs_of(const std::vector<float>& logits, int32_t token, int num_logprobs) {
  Logprobs logprobs = make_logprobs(1, 1 + num_logprobs);
  score(logits, {.drawn_token = token, .num_most_likely = num_logprobs}, 0, logprobs);
  return logprobs;
}

TEST(Logprobs, AgreeWithTheFloat64Reference) {
  for (int size : {1, 30, 257, 5000}) {
    const auto logits = reference::random_logits(size, 5.0f, size);
    const auto expected = reference::log_softmax(logits);
    const auto ids = reference::ranking(logits);
    for (int num_logprobs : {0, 1, 20, size}) {
      if (num_logprobs > size) continue;
      const int place = size / 3;
      const auto actual = logprobs_of(logits, ids[place], num_logprobs);
      ASSERT_EQ(actual.width, 1 + num_logprobs);
      EXPECT_EQ(actual.token_ids[0], ids[place]);
      EXPECT_EQ(actual.ranks[0], place + 1);
      for (int i = 0; i < num_logprobs; ++i) EXPECT_EQ(actual.token_ids[1 + i], ids[i]);
      for (int i = 0; i <= num_logprobs; ++i) {
        EXPECT_NEAR(actual.values[i], expected[actual.token_ids[i]], 4e-6);
      }
    }
  }
}

TEST(Logprobs, EqualLogitsComeInTheOrderOfIdsAndShareTheLastRank) {
  const std::vector<float> logits = {1, 2, 3, 2, 3, 2, 0};
  const auto logprobs = logprobs_of(logits, 3, 4);
  EXPECT_THAT(logprobs.token_ids, ElementsAre(3, 2, 4, 1, 3));
  EXPECT_THAT(logprobs.ranks, ElementsAre(5));
  EXPECT_THAT(logprobs_of(logits, 2, 0).ranks, ElementsAre(2));
  EXPECT_THAT(logprobs_of(logits, 6, 0).ranks, ElementsAre(7));
}

TEST(Logprobs, MaskedTokensAreMinusInfinityAndComeLast) {
  const std::vector<float> logits = {-kInfinity, 0, -kInfinity, 0};
  const auto logprobs = logprobs_of(logits, 3, 4);
  EXPECT_THAT(logprobs.token_ids, ElementsAre(3, 1, 3, 0, 2));
  const float half = std::log(0.5f);
  EXPECT_THAT(logprobs.values, ElementsAre(half, half, half, -kInfinity, -kInfinity));
}

TEST(Logprobs, AnInfiniteLogitHasLogprobZero) {
  const auto logprobs = logprobs_of({5, kInfinity, 7}, 1, 2);
  EXPECT_THAT(logprobs.token_ids, ElementsAre(1, 1, 2));
  EXPECT_THAT(logprobs.values, ElementsAre(0.0f, 0.0f, -kInfinity));
  EXPECT_THAT(logprobs.ranks, ElementsAre(1));
}

TEST(Logprobs, FillTheirOwnRowOnly) {
  const std::vector<float> logits = {0, 1, 2, 3};
  Logprobs logprobs = make_logprobs(3, 4);
  score(logits, {.drawn_token = 1, .num_most_likely = 2}, 1, logprobs);
  EXPECT_THAT(logprobs.token_ids, ElementsAre(0, 0, 0, 0, 1, 3, 2, 0, 0, 0, 0, 0));
  EXPECT_THAT(logprobs.ranks, ElementsAre(0, 3, 0));
  const std::span values(logprobs.values);
  EXPECT_THAT(values.first(4), Each(-kInfinity));
  EXPECT_THAT(values.subspan(4, 3), Each(testing::Gt(-5.0f)));
  EXPECT_THAT(values.last(5), Each(-kInfinity));
}

}  // namespace
}  // namespace vllm_metal
