// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu/attention_plan.h"

#include <algorithm>
#include <cstring>

namespace vllm_metal::gpu {

namespace {

constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }

// The keys that query `query` of a request sees are the cached tokens [first, end).
struct KeyRange {
  int first;
  int end;
};

KeyRange visible_keys(int num_cached, int query, int sliding_window) {
  const int end = num_cached + query + 1;
  return {sliding_window > 0 ? std::max(0, end - sliding_window) : 0, end};
}

int keys_per_part(int num_keys) {
  const int parts = divide_up(num_keys, kDecodeKeys);
  return parts <= kMaxDecodeParts
             ? kDecodeKeys
             : divide_up(divide_up(num_keys, kMaxDecodeParts), kDecodeKeys) * kDecodeKeys;
}

// Query `query` of `request`, which is token `token` of the batch.
void add_works(AttentionPlan& plan, int request, int query, int token, KeyRange keys) {
  const int step = keys_per_part(keys.end - keys.first);
  const int num_parts = divide_up(keys.end - keys.first, step);
  if (num_parts == 1) {
    plan.works.push_back({request, query, keys.first, keys.end, -1});
    return;
  }
  plan.merges.push_back({token, plan.num_partials, num_parts});
  for (int begin = keys.first; begin < keys.end; begin += step)
    plan.works.push_back(
        {request, query, begin, std::min(keys.end, begin + step), plan.num_partials++});
}

void add_tiles(AttentionPlan& plan, int request, int num_rows) {
  for (int first = 0; first < num_rows; first += kPrefillRows)
    plan.tiles.push_back({request, first, std::min<int32_t>(kPrefillRows, num_rows - first), 0});
}

// Keys up to the last query of a tile; with a window all tiles have about as many.
int keys_before(const PrefillTile& tile, const PlanArguments& arguments) {
  const int begin = arguments.query_starts[tile.request];
  const int num_queries = arguments.query_starts[tile.request + 1] - begin;
  const int last = (tile.first_row + tile.num_rows - 1) / arguments.group_size;
  const KeyRange keys = visible_keys(arguments.context_lens[tile.request] - num_queries, last,
                                     arguments.sliding_window);
  return keys.end - keys.first;
}

template <typename T>
size_t append(std::vector<int32_t>& words, const std::vector<T>& items) {
  static_assert(sizeof(T) % sizeof(int32_t) == 0);
  words.resize((words.size() + 3) / 4 * 4);
  const size_t begin = words.size();
  words.resize(begin + items.size() * (sizeof(T) / sizeof(int32_t)));
  if (!items.empty()) std::memcpy(words.data() + begin, items.data(), items.size() * sizeof(T));
  return begin * sizeof(int32_t);
}

}  // namespace

AttentionPlan plan_attention(const PlanArguments& arguments) {
  AttentionPlan plan;
  const int num_requests = static_cast<int>(arguments.context_lens.size());
  for (int request = 0; request < num_requests; ++request) {
    const int begin = arguments.query_starts[request];
    const int num_queries = arguments.query_starts[request + 1] - begin;
    if (num_queries > kMaxDecodeQueries) {
      add_tiles(plan, request, num_queries * arguments.group_size);
      continue;
    }
    const int num_cached = arguments.context_lens[request] - num_queries;
    for (int query = 0; query < num_queries; ++query)
      add_works(plan, request, query, begin + query,
                visible_keys(num_cached, query, arguments.sliding_window));
  }
  std::stable_sort(plan.tiles.begin(), plan.tiles.end(),
                   [&](const PrefillTile& a, const PrefillTile& b) {
                     return keys_before(a, arguments) > keys_before(b, arguments);
                   });
  return plan;
}

int decode_heads(int group_size, int head_dim) {
  int heads = 1;
  while (heads < group_size && heads < 8 && 2 * heads * head_dim <= kDecodeMaxValues) heads *= 2;
  return heads;
}

bool has_attention_kernel(int head_dim) {
  return std::ranges::find(kHeadDims, head_dim) != std::end(kHeadDims);
}

PackedPlan::PackedPlan(const AttentionPlan& plan) {
  tiles_offset = append(words, plan.tiles);
  works_offset = append(words, plan.works);
  merges_offset = append(words, plan.merges);
}

}  // namespace vllm_metal::gpu
