// SPDX-License-Identifier: Apache-2.0
// Brings queries, keys and values from where they lie to where the inner loops read them, as
// float32. Internal to attention.simd.cpp.
#pragma once

#include "kernels/cpu/simd/attention.h"
#include "kernels/cpu/simd/transpose.h"
#include "kernels/cpu/simd/vector.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

// Floats of a row of values or outputs: whole registers.
VLLM_METAL_INLINE int64_t padded(int head_dim) { return (head_dim + kLanes - 1) / kLanes * kLanes; }

VLLM_METAL_INLINE int rows_of_head(const AttentionTile& tile) {
  return tile.num_queries * tile.group_size;
}
VLLM_METAL_INLINE int num_rows_of(const AttentionTile& tile) {
  return tile.num_kv_heads * rows_of_head(tile);
}
// The query and the query head of a row, both counted within the tile.
VLLM_METAL_INLINE int64_t query_of(const AttentionTile& tile, int row) {
  return row % rows_of_head(tile) / tile.group_size;
}
VLLM_METAL_INLINE int64_t head_of(const AttentionTile& tile, int row) {
  return row / rows_of_head(tile) * tile.group_size + row % tile.group_size;
}

template <typename Element>
VLLM_METAL_INLINE Floats load_up_to(const Element* source, int64_t count) {
  return count >= kLanes ? load(source) : load_first(source, (size_t)count);
}

template <typename Element>
void gather_queries(const AttentionTile& tile, float* queries) {
  const int num_rows = num_rows_of(tile);
  for (int row = 0; row < num_rows; ++row, queries += tile.head_dim) {
    const Element* source = (const Element*)tile.queries + query_of(tile, row) * tile.query_stride +
                            head_of(tile, row) * tile.query_head_stride;
    int d = 0;
    for (; d + kLanes <= tile.head_dim; d += kLanes)
      store(queries + d, load(source + d) * tile.scale);
    for (; d < tile.head_dim; ++d) queries[d] = load_one(source + d) * tile.scale;
  }
}

// Offsets in the cache, in elements, of tokens [begin, begin + count).
inline void find_rows(const AttentionTile& tile, int64_t begin, int count, int64_t* offsets) {
  if (tile.block_size == 0) {
    for (int i = 0; i < count; ++i)
      offsets[i] = (tile.block_table[0] + begin + i) * tile.cache_stride;
    return;
  }
  int64_t block = begin / tile.block_size;
  int within = (int)(begin % tile.block_size);
  for (int i = 0; i < count; ++i) {
    offsets[i] = ((int64_t)tile.block_table[block] * tile.block_size + within) * tile.cache_stride;
    if (++within == tile.block_size) {
      within = 0;
      ++block;
    }
  }
}

// Brings `head_dim` elements near, for use after some thousand cycles. To the second cache: many
// more lines can be under way to it than to the first, which more than makes up for the way from
// there; and the machine's own prefetching is of no use between blocks of a few KB.
template <typename Element>
VLLM_METAL_INLINE void prefetch_row(const Element* row, int head_dim) {
  constexpr int kLine = 64 / sizeof(Element);
  for (int d = 0; d < head_dim; d += kLine) __builtin_prefetch(row + d, 0, 2);
}

// Calls f(d, lanes) for each dimension d in order: that dimension of kLanes keys, which may be null
// for zeros.
template <typename Element, typename Function>
VLLM_METAL_INLINE void transpose_dimensions(const Element* const* keys, int begin, int head_dim,
                                            const Function& f) {
  for (int d = begin; d < head_dim; d += kLanes) {
    Floats square[kLanes];
    VLLM_METAL_UNROLL
    for (int i = 0; i < kLanes; ++i)
      square[i] = keys[i] != nullptr ? load_up_to(keys[i] + d, head_dim - d) : Floats{};
    transpose(square);
    VLLM_METAL_UNROLL
    for (int i = 0; i < kLanes; ++i)
      if (d + i < head_dim) f(d + i, square[i]);
  }
}

template <typename Element, typename Function>
VLLM_METAL_INLINE void for_each_dimension(const Element* const* keys, int head_dim,
                                          const Function& f) {
  transpose_dimensions(keys, 0, head_dim, f);
}

// Of bfloat16, two dimensions are transposed at a time, as the word that they lie in; a shift or a
// mask takes each out. Float16 gains nothing by it.
template <typename Function>
VLLM_METAL_INLINE void for_each_dimension(const Bfloat16* const* keys, int head_dim,
                                          const Function& f) {
  int d = 0;
  for (; d + 2 * kLanes <= head_dim; d += 2 * kLanes) {
    Floats square[kLanes];
    VLLM_METAL_UNROLL
    for (int i = 0; i < kLanes; ++i)
      square[i] = keys[i] != nullptr ? load_bits<Floats>(keys[i] + d) : Floats{};
    transpose(square);
    VLLM_METAL_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      const Words pair = as_words(square[i]);
      f(d + 2 * i, as_floats(pair << 16));
      f(d + 2 * i + 1, as_floats(pair & 0xffff0000u));
    }
  }
  transpose_dimensions(keys, d, head_dim, f);
}

// Keys [first, first + kLanes) of those at `offsets`, null from `count` on.
template <typename Element>
VLLM_METAL_INLINE void find_keys(const AttentionTile& tile, const int64_t* offsets, int first,
                                 int count, const Element** keys) {
  for (int i = 0; i < kLanes; ++i)
    keys[i] = first + i < count ? (const Element*)tile.keys + offsets[first + i] : nullptr;
}

// Keys of the next block at the same places of it, null where there is none.
template <typename Element>
VLLM_METAL_INLINE void prefetch_keys(const AttentionTile& tile, const int64_t* next, int first) {
  for (int i = first; next != nullptr && i < first + kLanes; ++i)
    prefetch_row((const Element*)tile.keys + next[i], tile.head_dim);
}

// Writes keys [head_dim, kKeyBlock]; of the columns from `count` on, those up to a whole number of
// registers become zero.
template <typename Element>
void gather_keys(const AttentionTile& tile, const int64_t* offsets, const int64_t* next, int count,
                 float* keys) {
  for (int first = 0; first < count; first += kLanes) {
    prefetch_keys<Element>(tile, next, first);
    const Element* sources[kLanes];
    find_keys(tile, offsets, first, count, sources);
    for_each_dimension(sources, tile.head_dim,
                       [target = keys + first](int d, Floats lanes) __attribute__((always_inline)) {
                         store(target + d * kKeyBlock, lanes);
                       });
  }
}

// Scores [kRows, kKeyBlock] of `kRows` query rows [kRows, head_dim] with the keys, from where they
// lie.
template <int kRows, typename Element>
void score_keys(const AttentionTile& tile, const int64_t* offsets, const int64_t* next, int count,
                const float* queries, float* scores) {
  for (int first = 0; first < count; first += kLanes) {
    prefetch_keys<Element>(tile, next, first);
    const Element* keys[kLanes];
    find_keys(tile, offsets, first, count, keys);
    Floats sums[kRows] = {};
    for_each_dimension(keys, tile.head_dim,
                       [&, head_dim = tile.head_dim](int d, Floats lanes)
                           __attribute__((always_inline)) {
                             VLLM_METAL_UNROLL
                             for (int row = 0; row < kRows; ++row)
                               sums[row] = fma(queries[row * head_dim + d], lanes, sums[row]);
                           });
    VLLM_METAL_UNROLL
    for (int row = 0; row < kRows; ++row) store(scores + row * kKeyBlock + first, sums[row]);
  }
}

template <typename Element>
void gather_values(const AttentionTile& tile, const int64_t* offsets, const int64_t* next,
                   int count, float* values) {
  const Element* cache = (const Element*)tile.values;
  for (int i = 0; i < count; ++i, values += padded(tile.head_dim)) {
    if (next != nullptr) prefetch_row(cache + next[i], tile.head_dim);
    for (int d = 0; d < tile.head_dim; d += kLanes)
      store(values + d, load_up_to(cache + offsets[i] + d, tile.head_dim - d));
  }
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
