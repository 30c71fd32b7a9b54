// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/attention_plan.h"

#include <algorithm>

#include "kernels/cpu/simd/attention.h"

namespace vllm_metal::cpu {

namespace {

// Query rows of a tile: enough that bringing in a block of keys costs little beside using it.
constexpr int kRowsPerTile = 96;
// What bringing in a key costs, in units of one row's use of it.
constexpr int64_t kLoadCost = 6;
// Parts that each thread should have to choose from, so that none ends long after the others.
constexpr int64_t kPartsPerThread = 4;
// Products that a thread must have before waking it pays.
constexpr int64_t kProductsPerRange = 200'000;

int64_t cost_of(const TileWork& tile, int group_size) {
  return (tile.num_keys - tile.first_key) * (tile.num_queries * group_size + kLoadCost);
}

void add_tiles(const AttentionBatch& batch, int request, std::vector<TileWork>& tiles) {
  const int num_queries = batch.query_starts[request + 1] - batch.query_starts[request];
  const int queries_per_tile = std::max(1, kRowsPerTile / batch.group_size);
  const int64_t num_cached = batch.context_lens[request] - num_queries;
  for (int first = 0; first < num_queries; first += queries_per_tile) {
    const int count = std::min(queries_per_tile, num_queries - first);
    const int64_t own = num_cached + first;  // the first query's own key
    const int64_t first_key =
        batch.sliding_window == 0 ? 0 : std::max<int64_t>(0, own + 1 - batch.sliding_window);
    for (int kv_head = 0; kv_head < batch.num_kv_heads; ++kv_head)
      tiles.push_back({request, kv_head, first, count, first_key, own + count, 1});
  }
}

}  // namespace

AttentionPlan plan_attention(const AttentionBatch& batch, int head_dim, int num_threads) {
  AttentionPlan plan;
  for (int request = 0; request < batch.num_requests; ++request)
    add_tiles(batch, request, plan.tiles);
  int64_t total_cost = 0;
  for (const TileWork& tile : plan.tiles) total_cost += cost_of(tile, batch.group_size);
  const int64_t fair_cost = total_cost / (num_threads * kPartsPerThread);
  for (size_t i = 0; i < plan.tiles.size(); ++i) {
    TileWork& tile = plan.tiles[i];
    if (num_threads > 1 && cost_of(tile, batch.group_size) > fair_cost)
      tile.num_parts =
          static_cast<int>((tile.num_keys - 1) / kKeySpan - tile.first_key / kKeySpan) + 1;
    for (int part = 0; part < tile.num_parts; ++part)
      plan.parts.push_back({static_cast<int>(i), part});
  }
  const int64_t num_parts = static_cast<int64_t>(plan.parts.size());
  const int64_t products = std::max<int64_t>(1, total_cost * head_dim * 2);
  plan.grain = std::clamp<int64_t>(num_parts * kProductsPerRange / products, 1,
                                   std::max<int64_t>(1, num_parts));
  return plan;
}

}  // namespace vllm_metal::cpu
