// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/attention_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "kernels/cpu/simd/attention.h"

namespace vllm_metal::cpu {
namespace {

struct Batch {
  std::vector<int32_t> query_starts;
  std::vector<int32_t> context_lens;
  int num_kv_heads;
  int group_size;
  int sliding_window = 0;

  AttentionPlan plan(int num_threads) const {
    return plan_attention({static_cast<int>(context_lens.size()), query_starts.data(),
                           context_lens.data(), num_kv_heads, group_size, sliding_window},
                          64, num_threads);
  }
};

const Batch kMixed{{0, 300, 301, 301, 302, 422}, {300, 5000, 7, 1, 1500}, 3, 3};

TEST(AttentionPlan, EveryQueryOfEveryHeadOnce) {
  for (int num_threads : {1, 2, 8, 64}) {
    std::map<std::tuple<int, int, int>, int> seen;
    for (const TileWork& tile : kMixed.plan(num_threads).tiles) {
      for (int i = 0; i < tile.num_queries * tile.num_kv_heads; ++i)
        ++seen[{tile.request, tile.first_kv_head + i % tile.num_kv_heads,
                tile.first_query + i / tile.num_kv_heads}];
      // The last query of a tile sees the keys up to its own.
      const int num_queries =
          kMixed.query_starts[tile.request + 1] - kMixed.query_starts[tile.request];
      EXPECT_EQ(tile.num_keys, kMixed.context_lens[tile.request] - num_queries + tile.first_query +
                                   tile.num_queries);
    }
    EXPECT_EQ(seen.size(), 422u * 3);
    for (const auto& [query, count] : seen) EXPECT_EQ(count, 1);
  }
}

TEST(AttentionPlan, PartsAreWholeTilesOrTheirSpans) {
  for (int num_threads : {1, 2, 8, 64}) {
    const AttentionPlan plan = kMixed.plan(num_threads);
    size_t next = 0;
    for (size_t i = 0; i < plan.tiles.size(); ++i) {
      const TileWork& tile = plan.tiles[i];
      if (tile.num_parts > 1) {
        EXPECT_EQ(tile.num_parts, (tile.num_keys + kKeySpan - 1) / kKeySpan);
      }
      for (int part = 0; part < tile.num_parts; ++part, ++next) {
        ASSERT_LT(next, plan.parts.size());
        EXPECT_EQ(plan.parts[next].tile, static_cast<int>(i));
        EXPECT_EQ(plan.parts[next].part, part);
      }
    }
    EXPECT_EQ(next, plan.parts.size());
    EXPECT_GE(plan.grain, 1);
  }
}

TEST(AttentionPlan, SplitsALongDecodeForSeveralThreadsOnly) {
  const Batch decode{{0, 1}, {4000}, 2, 4};
  EXPECT_EQ(decode.plan(1).parts.size(), 1u);
  EXPECT_EQ(decode.plan(2).parts.size(), 8u);   // spans, of both heads
  EXPECT_EQ(decode.plan(8).parts.size(), 16u);  // spans of each head
}

TEST(AttentionPlan, SplitsAShortDecodeByHeads) {
  const Batch decode{{0, 1}, {400}, 8, 4};
  EXPECT_EQ(decode.plan(1).tiles.size(), 1u);
  EXPECT_EQ(decode.plan(2).tiles.size(), 8u);
  EXPECT_EQ(decode.plan(2).parts.size(), 8u);
}

TEST(AttentionPlan, HeadsOfOneTileAreBounded) {
  // 48 queries of 2 heads fill a tile; the 12 that are left do so for all 4 key heads.
  for (const TileWork& tile : Batch{{0, 60}, {60}, 4, 2}.plan(1).tiles)
    EXPECT_EQ(tile.num_kv_heads, tile.num_queries == 48 ? 1 : 4);
  // 96 rows a tile, 8 of each key head.
  for (const TileWork& tile : Batch{{0, 1}, {60}, 24, 8}.plan(1).tiles)
    EXPECT_EQ(tile.num_kv_heads, 12);
}

TEST(AttentionPlan, WindowLeavesOutSpansThatNoQuerySees) {
  const Batch decode{{0, 1}, {4000}, 2, 4, 600};  // keys 3400 to 3999: spans 6 and 7
  const AttentionPlan plan = decode.plan(2);
  for (const TileWork& tile : plan.tiles) {
    EXPECT_EQ(tile.first_key, 3400);
    EXPECT_EQ(tile.num_parts, 2);
  }
  Batch prefill{{0, 3000}, {3000}, 1, 3, 100};
  for (const TileWork& tile : prefill.plan(2).tiles)
    EXPECT_EQ(tile.first_key, std::max(0, tile.first_query + 1 - 100));
}

TEST(AttentionPlan, LeavesEnoughTilesWhole) {
  Batch decodes{{0}, {}, 3, 3};
  for (int i = 1; i <= 32; ++i) {
    decodes.query_starts.push_back(i);
    decodes.context_lens.push_back(2000);
  }
  EXPECT_EQ(decodes.plan(4).parts.size(), 32u);
}

TEST(AttentionPlan, SmallWorkIsOneRange) {
  const Batch decode{{0, 1, 2}, {20, 9}, 3, 3};
  const AttentionPlan plan = decode.plan(8);
  EXPECT_EQ(plan.grain, static_cast<int64_t>(plan.parts.size()));
}

TEST(AttentionPlan, NothingToDo) {
  const Batch empty{{0, 0}, {12}, 3, 3};
  EXPECT_TRUE(empty.plan(2).parts.empty());
}

}  // namespace
}  // namespace vllm_metal::cpu
