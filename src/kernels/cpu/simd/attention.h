// SPDX-License-Identifier: Apache-2.0
// What the attention kernels of each instruction set are told. No functions here: the SIMD sources
// include this file (see cmake/SimdKernels.cmake).
#pragma once

#include <stdint.h>

#include "kernels/cpu/isa_tables.h"
#include "kernels/cpu/simd/element_type.h"

namespace vllm_metal::cpu {

// Keys that are scored at once, and keys that one partial softmax covers. Blocks and spans lie at
// multiples of these positions whatever the batch, the tile or the threads, and a query's partial
// results are always merged span by span from the first: so every query has one order of
// summation, alone or batched, prefilled or decoded, and the spans of a long request can still be
// computed side by side.
constexpr int kKeyBlock = 64;
constexpr int kKeySpan = 512;

// More than any request has, and little enough that sums with it do not overflow.
constexpr int64_t kNoWindow = INT64_MAX / 4;

// Consecutive queries of one request for all query heads of consecutive key heads; those of one key
// head share each key and value that is loaded. Strides are in elements, head_dim is contiguous
// everywhere. A row is one query and query head; rows are ordered by key head, query, query head.
struct AttentionTile {
  ElementType type;
  int head_dim;
  int num_queries;
  int num_kv_heads;
  int group_size;  // query heads of a key head
  float scale;
  float soft_cap;       // 0: none
  const float* sinks;   // [num_kv_heads, group_size], null: none
  int64_t num_keys;     // up to the first query's own; each later query has one more
  int64_t window;       // the last keys of those that a query sees, at least 1; kNoWindow: all
  const void* queries;  // [num_queries, num_kv_heads, group_size, head_dim]
  int64_t query_stride;
  int64_t query_head_stride;
  void* output;  // as queries, heads contiguous
  int64_t output_stride;
  // The key heads' part of the cache: see BatchLayout for what lies in which row.
  const void* keys;    // [num_rows, num_kv_heads, head_dim]
  const void* values;  // [num_rows, num_kv_heads, head_dim]
  int64_t cache_stride;
  const int32_t* block_table;
  int block_size;  // 0: rows follow each other from block_table[0]
};

// Keys [begin, end) of a tile, begin a multiple of kKeySpan.
struct TileRange {
  AttentionTile tile;
  int64_t begin;
  int64_t end;
};

struct AttentionKernels {
  // Floats of a softmax state, the result over some of the keys, and of working memory for a tile
  // of `num_rows`, of all its heads. Both are to be aligned to 64 bytes.
  int64_t (*state_floats)(int num_rows, int head_dim);
  int64_t (*scratch_floats)(int num_rows, int head_dim);
  // Attends to the keys of a range and writes the result to `state`. Some query must see one of the
  // keys of each span. What comes after it, null if that is not known, has its first keys brought
  // near meanwhile.
  void (*attend)(const TileRange& range, const TileRange* next, float* state, float* scratch);
  // Merges `count` states that follow each other in memory, in the order of their keys, and
  // writes the output. The first one is overwritten.
  void (*finish)(const AttentionTile& tile, float* states, int count);
};

VLLM_METAL_DECLARE_KERNELS(AttentionKernels, attention_kernels)

}  // namespace vllm_metal::cpu
