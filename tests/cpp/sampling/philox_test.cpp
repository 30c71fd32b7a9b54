// SPDX-License-Identifier: Apache-2.0
#include "sampling/philox.h"

#include <gtest/gtest.h>

#include <vector>

namespace vllm_metal {
namespace {

// Known answers published with the authors' Random123 library.
static_assert(philox4x32({0, 0, 0, 0}, {0, 0}) ==
              PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
static_assert(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
                         {0xffffffff, 0xffffffff}) ==
              PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
static_assert(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                         {0xa4093822, 0x299f31d0}) ==
              PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});

TEST(Philox, KnownAnswersHoldAtRunTime) {
  volatile uint32_t zero = 0;
  EXPECT_EQ(philox4x32({zero, zero, zero, zero}, {zero, zero}),
            (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
}

TEST(UniformDraw, IsTheTopBitsOfTheFirstTwoWords) {
  const uint64_t bits = 0xe169c58d6627e8d5;
  EXPECT_EQ(uniform_draw(0, 0), static_cast<double>(bits >> 11) / 9007199254740992.0);
}

TEST(UniformDraw, UsesAllBitsOfSeedAndIndex) {
  std::vector<double> draws;
  for (int bit = 0; bit < 64; ++bit) {
    draws.push_back(uniform_draw(uint64_t{1} << bit, 0));
    draws.push_back(uniform_draw(0, uint64_t{1} << bit));
  }
  for (size_t i = 0; i < draws.size(); ++i) {
    EXPECT_NE(draws[i], uniform_draw(0, 0));
    for (size_t j = 0; j < i; ++j) EXPECT_NE(draws[i], draws[j]);
  }
}

// 256 equally likely cells, 1,000 draws expected in each. The statistic has mean 255 and standard
// deviation 22.6; the bounds are 5 of those away. Over indices, and over consecutive seeds.
TEST(UniformDraw, IsUniformOverIndicesAndOverSeeds) {
  for (const bool over_seeds : {false, true}) {
    constexpr int kCells = 256;
    constexpr int kExpected = 1000;
    std::vector<int> counts(kCells, 0);
    for (uint64_t i = 0; i < kCells * kExpected; ++i) {
      const double draw = over_seeds ? uniform_draw(i, 7) : uniform_draw(7, i);
      ASSERT_GE(draw, 0.0);
      ASSERT_LT(draw, 1.0);
      ++counts[static_cast<int>(draw * kCells)];
    }
    double statistic = 0;
    for (int count : counts) {
      statistic += (count - kExpected) * (count - kExpected) / double{kExpected};
    }
    EXPECT_GT(statistic, 142);
    EXPECT_LT(statistic, 368);
  }
}

}  // namespace
}  // namespace vllm_metal
