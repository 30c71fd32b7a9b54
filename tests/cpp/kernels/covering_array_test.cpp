// SPDX-License-Identifier: Apache-2.0
#include "kernels/covering_array.h"

#include <gtest/gtest.h>

#include <set>
#include <tuple>

namespace vllm_metal {
namespace {

using namespace testing_support;

TEST(CoveringArray, AllPairsMeetInFewCases) {
  const std::vector<int> counts{6, 6, 4, 3, 4, 4, 3, 1};
  for (unsigned seed : {1u, 2u, 3u}) {
    const auto cases = AllPairs(counts, seed).cases();
    std::set<std::tuple<size_t, int, size_t, int>> met;
    for (const Levels& levels : cases) {
      ASSERT_EQ(levels.size(), counts.size());
      for (size_t i = 0; i < counts.size(); ++i) {
        ASSERT_GE(levels[i], 0);
        ASSERT_LT(levels[i], counts[i]);
        for (size_t j = 0; j < i; ++j) met.insert({i, levels[i], j, levels[j]});
      }
    }
    size_t pairs = 0;
    for (size_t i = 0; i < counts.size(); ++i)
      for (size_t j = 0; j < i; ++j) pairs += static_cast<size_t>(counts[i]) * counts[j];
    EXPECT_EQ(met.size(), pairs);
    EXPECT_LT(cases.size(), 70u);
  }
}

TEST(CoveringArray, ProductIsEveryCombinationOnce) {
  const auto cases = product_of({3, 1, 4});
  EXPECT_EQ(cases.size(), 12u);
  EXPECT_EQ(std::set<Levels>(cases.begin(), cases.end()).size(), 12u);
}

}  // namespace
}  // namespace vllm_metal
