// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu/attention_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/gpu/kernel_launch.h"
#include "kernels/gpu/kernel_source.h"

namespace vllm_metal::gpu {
namespace {

struct Batch {
  std::vector<int32_t> query_starts{0};
  std::vector<int32_t> context_lens;

  Batch& request(int context_len, int num_queries) {
    query_starts.push_back(query_starts.back() + num_queries);
    context_lens.push_back(context_len);
    return *this;
  }
  AttentionPlan plan(int group_size, int sliding_window = 0) const {
    return plan_attention({query_starts, context_lens, group_size, sliding_window});
  }
};

Batch mixed_batch() {
  return Batch()
      .request(1, 1)
      .request(700, 1)
      .request(300, 300)
      .request(256, 1)
      .request(9000, 40)
      .request(5, 0)
      .request(257, 4)
      .request(100000, 1)
      .request(5, 5);
}

TEST(GpuAttentionPlan, EachRowIsInOneTile) {
  const Batch batch = mixed_batch();
  for (int group_size : {1, 3, 8, 12}) {
    std::map<int, std::set<int>> rows;
    for (const PrefillTile& tile : batch.plan(group_size).tiles) {
      EXPECT_GE(tile.num_rows, 1);
      EXPECT_LE(tile.num_rows, kPrefillRows);
      for (int i = 0; i < tile.num_rows; ++i)
        EXPECT_TRUE(rows[tile.request].insert(tile.first_row + i).second);
    }
    ASSERT_EQ(rows.size(), 3u);  // requests 2, 4 and 8: the others have few queries
    for (const auto& [request, of_request] : rows) {
      const int num_queries = batch.query_starts[request + 1] - batch.query_starts[request];
      EXPECT_EQ(of_request.size(), static_cast<size_t>(num_queries) * group_size);
      EXPECT_EQ(*of_request.rbegin(), num_queries * group_size - 1);
    }
  }
}

TEST(GpuAttentionPlan, LongTilesComeFirst) {
  const Batch batch = Batch().request(64, 64).request(500, 33);
  const auto tiles = batch.plan(1).tiles;
  ASSERT_EQ(tiles.size(), 4u);
  EXPECT_EQ(tiles[0].request, 1);
  EXPECT_EQ(tiles[0].first_row, 32);
  EXPECT_EQ(tiles[0].num_rows, 1);
  EXPECT_EQ(tiles[3].request, 0);
  EXPECT_EQ(tiles[3].first_row, 0);
}

// Each key that a query sees is in one work; works of several parts are merged in order.
void expect_works_cover(const Batch& batch, int sliding_window) {
  const AttentionPlan plan = batch.plan(2, sliding_window);
  std::map<std::pair<int, int>, std::vector<DecodeWork>> of_query;
  for (const DecodeWork& work : plan.works) of_query[{work.request, work.query}].push_back(work);
  std::map<int, MergeWork> merge_of;
  for (const MergeWork& merge : plan.merges)
    EXPECT_TRUE(merge_of.emplace(merge.token, merge).second);
  size_t num_merged = 0;
  for (const auto& [query, works] : of_query) {
    const auto [request, index] = query;
    const int begin = batch.query_starts[request];
    const int num_queries = batch.query_starts[request + 1] - begin;
    EXPECT_LE(num_queries, kMaxDecodeQueries);
    const int end = batch.context_lens[request] - num_queries + index + 1;
    int next = sliding_window == 0 ? 0 : std::max(0, end - sliding_window);
    for (size_t i = 0; i < works.size(); ++i) {
      EXPECT_EQ(works[i].first_key, next);
      EXPECT_GT(works[i].end_key, works[i].first_key);
      next = works[i].end_key;
      const int partial =
          works.size() == 1 ? -1 : merge_of.at(begin + index).first_partial + int(i);
      EXPECT_EQ(works[i].partial, partial);
    }
    EXPECT_EQ(next, end);
    EXPECT_LE(works.size(), static_cast<size_t>(kMaxDecodeParts));
    if (works.size() > 1) {
      EXPECT_EQ(merge_of.at(begin + index).num_partials, static_cast<int>(works.size()));
      num_merged += works.size();
    }
  }
  EXPECT_EQ(of_query.size(), 8u);
  EXPECT_EQ(num_merged, static_cast<size_t>(plan.num_partials));
}

TEST(GpuAttentionPlan, EachVisibleKeyIsInOneWork) {
  for (int sliding_window : {0, 1, 16, 300, 200000})
    expect_works_cover(mixed_batch(), sliding_window);
}

// What a request's result is made of does not depend on the rest of the batch.
TEST(GpuAttentionPlan, RequestsAreCutAsIfAlone) {
  const AttentionPlan alone = Batch().request(9001, 1).plan(4);
  const AttentionPlan batched = Batch().request(512, 1).request(9001, 1).request(77, 60).plan(4);
  std::vector<DecodeWork> works;
  for (const DecodeWork& work : batched.works)
    if (work.request == 1) works.push_back(work);
  ASSERT_EQ(works.size(), alone.works.size());
  for (size_t i = 0; i < works.size(); ++i) {
    EXPECT_EQ(works[i].first_key, alone.works[i].first_key);
    EXPECT_EQ(works[i].end_key, alone.works[i].end_key);
  }
}

TEST(GpuAttentionPlan, HeadsOfAGroupFitItsRegisters) {
  EXPECT_EQ(decode_heads(1, 128), 1);
  EXPECT_EQ(decode_heads(3, 64), 4);
  EXPECT_EQ(decode_heads(8, 128), 8);
  EXPECT_EQ(decode_heads(16, 64), 8);
  EXPECT_EQ(decode_heads(8, 192), 4);
  EXPECT_EQ(decode_heads(8, 256), 4);
  EXPECT_TRUE(has_attention_kernel(80));
  EXPECT_FALSE(has_attention_kernel(72));
}

TEST(GpuAttentionPlan, ListsArePackedAtMultiplesOf16Bytes) {
  const AttentionPlan plan = mixed_batch().plan(3);
  const PackedPlan packed(plan);
  const char* bytes = reinterpret_cast<const char*>(packed.words.data());
  EXPECT_EQ(packed.tiles_offset % 16, 0u);
  EXPECT_EQ(packed.works_offset % 16, 0u);
  EXPECT_EQ(packed.merges_offset % 16, 0u);
  EXPECT_EQ(std::memcmp(bytes + packed.tiles_offset, plan.tiles.data(),
                        plan.tiles.size() * sizeof(PrefillTile)),
            0);
  EXPECT_EQ(std::memcmp(bytes + packed.works_offset, plan.works.data(),
                        plan.works.size() * sizeof(DecodeWork)),
            0);
  EXPECT_EQ(std::memcmp(bytes + packed.merges_offset, plan.merges.data(),
                        plan.merges.size() * sizeof(MergeWork)),
            0);
}

TEST(GpuKernelSource, NamesAnInstance) {
  const KernelName name{"attention_decode", "half, 128, 4"};
  EXPECT_EQ(name.expression(), "attention_decode<half, 128, 4>");
  EXPECT_EQ(name.identifier(), "attention_decode_half_128_4");
  const std::string metal = kernel_source(KernelTarget::kMetal, name);
  EXPECT_NE(metal.find("\nINSTANTIATE_KERNEL(\"attention_decode_half_128_4\", attention_decode, "
                       "half, 128, 4)\n"),
            std::string::npos);
  for (const std::string& source : {metal, kernel_source(KernelTarget::kCuda, name)}) {
    EXPECT_NE(source.find("struct AttentionArguments"), std::string::npos);
    EXPECT_EQ(source.find("#pragma once"), std::string::npos);
    EXPECT_EQ(source.find("#include <cstdint>"), std::string::npos);
  }
}

}  // namespace
}  // namespace vllm_metal::gpu
