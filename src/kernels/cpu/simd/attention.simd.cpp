// SPDX-License-Identifier: Apache-2.0
// Attention of a tile of query rows over blocks of keys with a running ("online") softmax
// (arXiv:1805.02867). Scores are computed with keys across the lanes of a register, transposed from
// where they lie or in a copy, of bfloat16 by products of pairs of dimensions where the processor
// has them; outputs with head_dim across the lanes. Each row's operations and their order are the
// same however many rows the tile has.
#include "kernels/cpu/simd/attention.h"

#include "kernels/cpu/simd/attention_gather.h"
#include "kernels/cpu/simd/attention_products.h"
#include "kernels/cpu/simd/attention_scores.h"
#include "kernels/cpu/simd/attention_softmax.h"
#include "kernels/cpu/simd/attention_state.h"
#include "kernels/cpu/simd/vector.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

namespace {

VLLM_METAL_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
VLLM_METAL_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

struct Scratch {
  float* queries;    // [num_rows, head_dim], as gather_queries writes them
  float* keys;       // [padded(head_dim), kKeyBlock], as gather_keys writes them
  float* values;     // [kKeyBlock, padded(head_dim)]
  float* scores;     // [num_rows, kKeyBlock]
  float* lane_sums;  // [num_rows, kLanes] the sums of State, one a lane
  State span;
};

Scratch take_scratch(Pieces& pieces, int num_rows, int head_dim) {
  Scratch scratch;
  scratch.queries = pieces.take((int64_t)num_rows * head_dim);
  scratch.keys = pieces.take(padded(head_dim) * kKeyBlock);
  scratch.values = pieces.take(kKeyBlock * padded(head_dim));
  scratch.scores = pieces.take((int64_t)num_rows * kKeyBlock);
  scratch.lane_sums = pieces.take((int64_t)num_rows * kLanes);
  scratch.span = take_state(pieces, num_rows, head_dim);
  return scratch;
}

// The rows from `row` on; keys and values are of one head at a time.
VLLM_METAL_INLINE Scratch rows_from(const Scratch& scratch, int row, int head_dim) {
  Scratch result = scratch;
  result.queries += (int64_t)row * head_dim;
  result.scores += row * kKeyBlock;
  result.lane_sums += row * kLanes;
  return result;
}

int64_t state_floats(int num_rows, int head_dim) {
  Pieces pieces{nullptr};
  take_state(pieces, num_rows, head_dim);
  return pieces.used;
}

int64_t scratch_floats(int num_rows, int head_dim) {
  Pieces pieces{nullptr};
  take_scratch(pieces, num_rows, head_dim);
  return pieces.used;
}

// ---- Blocks, spans, tiles ----

// A block of keys and values, as copies that many rows read ...
template <typename Element>
struct GatheredBlock {
  const AttentionTile& tile;
  const float* keys;    // [steps, kKeyBlock]
  const float* values;  // [kKeyBlock, padded(head_dim)]

  void score(const float* queries, int num_rows, int num_keys, float* scores) const {
    __builtin_memset(scores, 0, num_rows * kKeyBlock * sizeof(float));
    const Product<KeyRows<Element>> product = {.a = queries,
                                               .a_stride = tile.head_dim,
                                               .b = {{keys, kKeyBlock}},
                                               .c = scores,
                                               .c_stride = kKeyBlock,
                                               .count = ScoreSteps<Element>::count(tile.head_dim),
                                               .columns = num_keys};
    add_product(product, num_rows);
    finish_scores<Element>(scores, num_rows, num_keys, tile.scale);
  }

  FloatRows value_rows(int first) const {
    return {values + first * padded(tile.head_dim), padded(tile.head_dim)};
  }
};

// ... or where they lie in the cache, which costs less for few rows.
template <typename Element>
struct CachedBlock {
  const AttentionTile& tile;
  const int64_t* offsets;
  NextBlock& next;

  void score(const float* queries, int num_rows, int num_keys, float* scores) const {
    constexpr void (*kScoreKeys[kMaxRows])(const AttentionTile&, const int64_t*, Prefetcher&, int,
                                           const float*, float*) = {
        score_keys<1, Element>, score_keys<2, Element>, score_keys<3, Element>,
        score_keys<4, Element>, score_keys<5, Element>, score_keys<6, Element>};
    kScoreKeys[num_rows - 1](tile, offsets, next.keys, num_keys, queries, scores);
  }

  CacheRows<Element> value_rows(int first) const {
    return {(const Element*)tile.values, offsets + first, next.values, tile.head_dim};
  }
};

// Keys [begin, end) of a block.
struct KeyRange {
  int begin;
  int end;
};

// Those of a block of `count` keys from position `first` on that a row of the tile sees.
VLLM_METAL_INLINE KeyRange seen_keys(const AttentionTile& tile, int row, int64_t first, int count) {
  const int64_t end = tile.num_keys + row / tile.group_size - first;
  return {(int)larger(0, end - tile.window), (int)smaller(count, end)};
}

// The highest of `row_max` and the scores that a row sees, which are capped; others are hidden.
VLLM_METAL_INLINE float highest_seen(const AttentionTile& tile, KeyRange seen, float* scores,
                                     float row_max) {
  if (tile.soft_cap > 0) cap_scores(scores, seen.end, tile.soft_cap);
  for (int key = 0; key < seen.begin; ++key) scores[key] = kNoScore;
  return highest_score(scores, seen.end, row_max);
}

// Rows [row, row + num_rows) of a tile against a block of `count` keys from position `begin` on.
// Every row sees at least one of them, later rows none before those of earlier rows.
template <typename Block>
void attend_rows(const AttentionTile& tile, int64_t begin, int count, int row, int num_rows,
                 const Block& block, const Scratch& scratch, const State& state) {
  const int64_t width = padded(tile.head_dim);
  const int first = seen_keys(tile, row, begin, count).begin;
  const int last = seen_keys(tile, row + num_rows - 1, begin, count).end;
  float* scores = scratch.scores + row * kKeyBlock;
  float* outputs = state.outputs + row * width;
  float highest[kMaxRows];
  block.score(scratch.queries + (int64_t)row * tile.head_dim, num_rows, last, scores);
  for (int i = 0; i < num_rows; ++i) {
    const KeyRange seen = seen_keys(tile, row + i, begin, count);
    highest[i] = highest_seen(tile, seen, scores + i * kKeyBlock, state.max[row + i]);
  }
  for (int i = 0; i < num_rows; ++i) {
    const KeyRange seen = seen_keys(tile, row + i, begin, count);
    float* row_scores = scores + i * kKeyBlock;
    update_softmax(row_scores, seen.end, highest[i], state.max + row + i,
                   scratch.lane_sums + (row + i) * kLanes, outputs + i * width, width);
    for (int key = seen.end; key < last; ++key) row_scores[key] = 0;
  }
  const Product<decltype(block.value_rows(first))> product = {.a = scores + first,
                                                              .a_stride = kKeyBlock,
                                                              .b = block.value_rows(first),
                                                              .c = outputs,
                                                              .c_stride = width,
                                                              .count = last - first,
                                                              .columns = width};
  add_product(product, num_rows);
}

// A block of keys, which lies at the same places for all heads of a tile.
struct KeyBlock {
  int64_t begin;               // its first key's position
  int count;                   // of keys, at most kKeyBlock; 0: no block
  int first_row, end_row;      // those of each head that see one of the keys
  int64_t offsets[kKeyBlock];  // in the cache, in elements; all may be read
};

// Keys from `begin` on, of those before `end`.
void find_block(const AttentionTile& tile, int64_t begin, int64_t end, KeyBlock& block) {
  block.begin = begin;
  block.count = (int)larger(0, smaller(kKeyBlock, end - begin));
  if (block.count == 0) return;
  // Queries before the first that sees key `begin` see none of the block, nor do those whose window
  // lies behind it.
  const int64_t end_query =
      smaller(tile.num_queries, begin + block.count - tile.num_keys + tile.window);
  block.first_row = (int)larger(0, begin + 1 - tile.num_keys) * tile.group_size;
  block.end_row = (int)end_query * tile.group_size;
  // Keys that no query sees may lie nowhere: a key that one sees stands in for them.
  const int unseen = seen_keys(tile, block.first_row, begin, block.count).begin;
  find_rows(tile, begin + unseen, block.count - unseen, block.offsets + unseen);
  for (int key = 0; key < unseen; ++key) block.offsets[key] = block.offsets[unseen];
  for (int key = block.count; key < kKeyBlock; ++key) block.offsets[key] = block.offsets[unseen];
}

// Adds a block's keys to the state of one head.
template <typename Element>
void attend_block(const AttentionTile& tile, const KeyBlock& block, NextBlock& next,
                  const Scratch& scratch, const State& state) {
  int row = block.first_row;
  int left = block.end_row - row;
  if (left <= kMaxRows) {
    const CachedBlock<Element> cached{tile, block.offsets, next};
    return attend_rows(tile, block.begin, block.count, row, left, cached, scratch, state);
  }
  gather_keys<Element>(tile, block.offsets, next.keys, block.count, scratch.keys);
  gather_values<Element>(tile, block.offsets, next.values, block.count, scratch.values);
  const GatheredBlock<Element> gathered{tile, scratch.keys, scratch.values};
  while (left > 0) {
    // As few groups of rows as kMaxRows allows, of even sizes.
    const int groups = (left + kMaxRows - 1) / kMaxRows;
    const int num_rows = (left + groups - 1) / groups;
    attend_rows(tile, block.begin, block.count, row, num_rows, gathered, scratch, state);
    row += num_rows;
    left -= num_rows;
  }
}

// The same for all heads, one after the other: so a block's memory is read as it lies.
template <typename Element>
void attend_heads(const AttentionTile& tile, const KeyBlock& block, NextBlock& next,
                  const Scratch& scratch, const State& state) {
  AttentionTile head = tile;
  head.num_kv_heads = 1;
  for (int i = 0; i < tile.num_kv_heads; ++i) {
    const int row = i * rows_of_head(tile);
    head.keys = (const Element*)tile.keys + (int64_t)i * tile.head_dim;
    head.values = (const Element*)tile.values + (int64_t)i * tile.head_dim;
    attend_block<Element>(head, block, next, rows_from(scratch, row, tile.head_dim),
                          rows_from(state, row, padded(tile.head_dim)));
  }
}

void clear(const AttentionTile& tile, const Scratch& scratch, const State& state) {
  const int num_rows = num_rows_of(tile);
  for (int row = 0; row < num_rows; ++row) state.max[row] = kNoScore;
  __builtin_memset(scratch.lane_sums, 0, num_rows * kLanes * sizeof(float));
  __builtin_memset(state.outputs, 0, num_rows * padded(tile.head_dim) * sizeof(float));
}

// The first block of a range: the first query's window begins first.
void find_first_block(const TileRange& range, KeyBlock& block) {
  const AttentionTile& tile = range.tile;
  const int64_t first = larger(range.begin, tile.num_keys - tile.window);
  find_block(tile, first / kKeyBlock * kKeyBlock, range.end, block);
}

// All heads of a block of the tile.
template <typename Element>
NextBlock as_next(const AttentionTile& tile, const KeyBlock& block) {
  const int64_t row_bytes = (int64_t)tile.num_kv_heads * tile.head_dim * sizeof(Element);
  return {{(const Element*)tile.keys, block.offsets, block.count, row_bytes},
          {(const Element*)tile.values, block.offsets, block.count, row_bytes}};
}

template <typename Element>
void attend(const TileRange& range, const TileRange* next_range, float* state_memory,
            float* scratch_memory) {
  const AttentionTile& tile = range.tile;
  const int num_rows = num_rows_of(tile);
  Pieces state_pieces{state_memory}, scratch_pieces{scratch_memory};
  const State whole = take_state(state_pieces, num_rows, tile.head_dim);
  const Scratch scratch = take_scratch(scratch_pieces, num_rows, tile.head_dim);
  gather_queries<Element>(tile, scratch.queries);
  KeyBlock blocks[2], first_of_next;
  int turn = 0;
  find_first_block(range, blocks[0]);
  for (int64_t span = range.begin; span < range.end; span += kKeySpan) {
    const State& state = span == range.begin ? whole : scratch.span;
    clear(tile, scratch, state);
    for (; blocks[turn].begin < smaller(range.end, span + kKeySpan); turn = 1 - turn) {
      KeyBlock& following = blocks[1 - turn];
      find_block(tile, blocks[turn].begin + kKeyBlock, range.end, following);
      NextBlock next = as_next<Element>(tile, following);
      if (following.count == 0 && next_range != nullptr) {
        find_first_block(*next_range, first_of_next);
        next = as_next<Element>(next_range->tile, first_of_next);
      }
      attend_heads<Element>(tile, blocks[turn], next, scratch, state);
    }
    for (int row = 0; row < num_rows; ++row)
      state.sum[row] = horizontal_sum(load(scratch.lane_sums + row * kLanes));
    if (span != range.begin) merge(whole, state, num_rows, padded(tile.head_dim));
  }
}

void attend_any(const TileRange& range, const TileRange* next, float* state, float* scratch) {
  switch (range.tile.type) {
    case ElementType::kFloat32:
      return attend<float>(range, next, state, scratch);
    case ElementType::kFloat16:
      return attend<Float16>(range, next, state, scratch);
    case ElementType::kBfloat16:
      return attend<Bfloat16>(range, next, state, scratch);
  }
}

void finish(const AttentionTile& tile, float* states, int count) {
  const int num_rows = num_rows_of(tile);
  Pieces pieces{states};
  const State state = take_state(pieces, num_rows, tile.head_dim);
  for (int i = 1; i < count; ++i)
    merge(state, take_state(pieces, num_rows, tile.head_dim), num_rows, padded(tile.head_dim));
  if (tile.sinks != nullptr) join_sinks(tile, state);
  switch (tile.type) {
    case ElementType::kFloat32:
      return write_output<float>(tile, state);
    case ElementType::kFloat16:
      return write_output<Float16>(tile, state);
    case ElementType::kBfloat16:
      return write_output<Bfloat16>(tile, state);
  }
}

}  // namespace

const AttentionKernels attention_kernels = {state_floats, scratch_floats, attend_any, finish};

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
