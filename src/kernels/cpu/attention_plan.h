// SPDX-License-Identifier: Apache-2.0
// How the attention of a batch is cut into pieces of work. The cut never changes a result (see
// kKeySpan), so it is free to follow the number of threads and the shape of the batch.
#pragma once

#include <cstdint>
#include <vector>

namespace vllm_metal::cpu {

struct AttentionBatch {
  int num_requests;
  const int32_t* query_starts;  // [num_requests + 1]
  const int32_t* context_lens;  // [num_requests]
  int num_kv_heads;
  int group_size;          // query heads of a key head
  int sliding_window = 0;  // keys that a query sees; 0: all
};

// Queries [first_query, first_query + num_queries) of a request for some of the key heads.
struct TileWork {
  int request;
  int first_kv_head;
  int num_kv_heads;
  int first_query;  // in the request
  int num_queries;
  int64_t first_key;  // that the first query sees
  int64_t num_keys;   // up to the last query's own
  int num_parts;      // 1, or the number of spans from first_key on, which are then computed apart
};

// Part `part` of a tile: one span of the keys that it sees, or all.
struct PartWork {
  int tile;
  int part;
};

struct AttentionPlan {
  std::vector<TileWork> tiles;
  std::vector<PartWork> parts;  // of all tiles, in order
  int64_t grain;                // parts that are worth a thread's waking
};

AttentionPlan plan_attention(const AttentionBatch& batch, int head_dim, int num_threads);

}  // namespace vllm_metal::cpu
