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
  return (tile.num_keys - tile.first_key) * tile.num_kv_heads *
         (tile.num_queries * group_size + kLoadCost);
}

int num_spans_of(const TileWork& tile) {
  return static_cast<int>((tile.num_keys - 1) / kKeySpan - tile.first_key / kKeySpan) + 1;
}

// The queries of a batch in tiles of all key heads.
std::vector<TileWork> tiles_of_all_heads(const AttentionBatch& batch) {
  std::vector<TileWork> tiles;
  const int queries_per_tile = std::max(1, kRowsPerTile / batch.group_size);
  for (int request = 0; request < batch.num_requests; ++request) {
    const int num_queries = batch.query_starts[request + 1] - batch.query_starts[request];
    const int64_t num_cached = batch.context_lens[request] - num_queries;
    for (int first = 0; first < num_queries; first += queries_per_tile) {
      const int count = std::min(queries_per_tile, num_queries - first);
      const int64_t own = num_cached + first;  // the first query's own key
      const int64_t first_key =
          batch.sliding_window == 0 ? 0 : std::max<int64_t>(0, own + 1 - batch.sliding_window);
      tiles.push_back({request, 0, batch.num_kv_heads, first, count, first_key, own + count, 1});
    }
  }
  return tiles;
}

// Cuts a tile into spans of keys, and into groups of heads, so that no piece costs more than
// `fair_cost` if that can be. Heads stay together where they may: memory is then read as it lies.
void add_tile(TileWork tile, int group_size, int64_t fair_cost, AttentionPlan& plan) {
  const int num_kv_heads = tile.num_kv_heads;
  int64_t cost = cost_of(tile, group_size);
  if (cost > fair_cost) {
    tile.num_parts = num_spans_of(tile);
    cost /= tile.num_parts;
  }
  const int64_t groups = std::clamp<int64_t>((cost + fair_cost - 1) / fair_cost, 1, num_kv_heads);
  const int most_heads = std::max(1, kRowsPerTile / (tile.num_queries * group_size));
  const int heads =
      std::min<int>(most_heads, static_cast<int>((num_kv_heads + groups - 1) / groups));
  for (int head = 0; head < num_kv_heads; head += heads) {
    tile.first_kv_head = head;
    tile.num_kv_heads = std::min(heads, num_kv_heads - head);
    for (int part = 0; part < tile.num_parts; ++part)
      plan.parts.push_back({static_cast<int>(plan.tiles.size()), part});
    plan.tiles.push_back(tile);
  }
}

}  // namespace

AttentionPlan plan_attention(const AttentionBatch& batch, int head_dim, int num_threads) {
  AttentionPlan plan;
  const std::vector<TileWork> tiles = tiles_of_all_heads(batch);
  int64_t total_cost = 0;
  for (const TileWork& tile : tiles) total_cost += cost_of(tile, batch.group_size);
  const int64_t fair_cost =
      num_threads == 1 ? total_cost : total_cost / (num_threads * kPartsPerThread);
  for (const TileWork& tile : tiles)
    add_tile(tile, batch.group_size, std::max<int64_t>(1, fair_cost), plan);
  const int64_t num_parts = static_cast<int64_t>(plan.parts.size());
  const int64_t products = std::max<int64_t>(1, total_cost * head_dim * 2);
  plan.grain = std::clamp<int64_t>(num_parts * kProductsPerRange / products, 1,
                                   std::max<int64_t>(1, num_parts));
  return plan;
}

}  // namespace vllm_metal::cpu
