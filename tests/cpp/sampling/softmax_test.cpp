// SPDX-License-Identifier: Apache-2.0
#include "sampling/softmax.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <span>

#include "reference.h"

namespace vllm_metal {
namespace {

using reference::kInfinity;

RowSoftmax softmax_of(const std::vector<float>& logits) {
  RowSoftmax softmax;
  softmax.reset(logits, max_logit(logits));
  return softmax;
}

TEST(ExpOfNonpositive, IsWithinTwoUlpOfFloat64) {
  for (int i = 0; i <= 870'000; ++i) {
    const float x = -1e-4f * static_cast<float>(i);
    if (x < kMinExponent) break;
    const double expected = std::exp(static_cast<double>(x));
    ASSERT_NEAR(exp_of_nonpositive(x) / expected, 1.0, 2.4e-7) << x;
  }
}

TEST(ExpOfNonpositive, IsExactAtTheEnds) {
  EXPECT_EQ(exp_of_nonpositive(0.0f), 1.0f);
  EXPECT_EQ(exp_of_nonpositive(-0.0f), 1.0f);
  EXPECT_GT(exp_of_nonpositive(kMinExponent), 0.0f);
  EXPECT_EQ(exp_of_nonpositive(std::nextafter(kMinExponent, -kInfinity)), 0.0f);
  EXPECT_EQ(exp_of_nonpositive(-1e30f), 0.0f);
  EXPECT_EQ(exp_of_nonpositive(-kInfinity), 0.0f);
}

TEST(MaxLogit, FindsItAtEveryPlaceOfEverySize) {
  for (int size = 1; size < 70; ++size) {
    for (int place = 0; place < size; ++place) {
      std::vector<float> logits(size, -kInfinity);
      logits[place] = -3.5f;
      EXPECT_EQ(max_logit(logits), -3.5f);
      logits.assign(size, 1.0f);
      logits[place] = std::nanf("");
      EXPECT_TRUE(std::isnan(max_logit(logits)));
    }
  }
  EXPECT_EQ(max_logit(std::vector<float>(5, -kInfinity)), -kInfinity);
}

TEST(MaxLogit, LiesAtOrAfterTheIndexGiven) {
  std::mt19937 random(3);
  for (int size : {1, 100, 4096, 4097, 12'345}) {
    std::vector<float> logits(static_cast<size_t>(size));
    for (float& logit : logits) logit = static_cast<float>(random() % 50);
    const auto expected = std::max_element(logits.begin(), logits.end());
    const MaxLogit max = locate_max_logit(logits);
    EXPECT_EQ(max.value, *expected);
    EXPECT_LE(max.begin, expected - logits.begin());
    EXPECT_EQ(
        static_cast<long>(max.begin) + find_logit(std::span(logits).subspan(max.begin), max.value),
        expected - logits.begin());
    logits.back() = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(locate_max_logit(logits).value));
  }
  EXPECT_EQ(locate_max_logit(std::vector<float>(5, -kInfinity)).value, -kInfinity);
}

TEST(RowSoftmax, SumsLikeFloat64) {
  for (int size : {1, 15, 16, 255, 256, 257, 5000}) {
    const auto logits = reference::random_logits(size, 4.0f, size);
    RowSoftmax softmax = softmax_of(logits);
    const double max = softmax.max();
    for (float temperature : {1.0f, 0.3f, 2.0f, 1.0f}) {
      double expected = 0;
      for (float logit : logits) expected += std::exp((logit - max) / temperature);
      EXPECT_NEAR(softmax.sum(temperature) / expected, 1.0, 1e-6);
    }
  }
}

TEST(RowSoftmax, ForgetsTheSumOfTheRowBefore) {
  const std::vector<float> one = {0.0f};
  const std::vector<float> two = {0.0f, 0.0f};
  RowSoftmax softmax = softmax_of(one);
  EXPECT_EQ(softmax.sum(1.0f), 1.0);
  softmax.reset(two, 0.0f);
  EXPECT_EQ(softmax.sum(1.0f), 2.0);
}

TEST(RowSoftmax, DrawInvertsTheCumulativeDistribution) {
  constexpr int kSize = 1000;
  const auto logits = reference::random_logits(kSize, 2.0f, 3);
  RowSoftmax softmax = softmax_of(logits);
  const auto probabilities = reference::distribution(logits, 0.7, 0, 1.0);
  double before = 0;
  for (int id = 0; id < kSize; ++id) {
    // Where a token's share is wider than the rounding of float32 weights.
    if (probabilities[id] > 1e-5) {
      EXPECT_EQ(softmax.draw(0.7f, before + 0.05 * probabilities[id]), id);
      EXPECT_EQ(softmax.draw(0.7f, before + 0.95 * probabilities[id]), id);
    }
    before += probabilities[id];
  }
}

TEST(RowSoftmax, NeverDrawsATokenWithoutWeight) {
  const double largest_uniform = 1.0 - 0x1p-53;
  for (int size : {1, 2, 300, 1000}) {
    for (int place : {0, size / 2, size - 1}) {
      std::vector<float> logits(size, -kInfinity);
      logits[place] = 5.0f;
      RowSoftmax softmax = softmax_of(logits);
      EXPECT_EQ(softmax.draw(1.0f, 0.0), place);
      EXPECT_EQ(softmax.draw(1.0f, largest_uniform), place);
    }
  }
}

TEST(FindCumulative, StopsAtTheLastWeightWhenTheTargetIsPastTheSum) {
  const std::vector<double> weights = {0, 1, 0, 2, 0};
  const auto find = [&](double target) {
    return find_cumulative(5, [&](int i) { return weights[i]; }, target).index;
  };
  EXPECT_EQ(find(0.0), 1);
  EXPECT_EQ(find(0.99), 1);
  EXPECT_EQ(find(1.0), 3);
  EXPECT_EQ(find(3.0), 3);
  EXPECT_EQ(find(4.0), 3);
}

}  // namespace
}  // namespace vllm_metal
