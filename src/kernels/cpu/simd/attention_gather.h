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

template <typename Element>
VLLM_METAL_INLINE Floats load_up_to(const Element* source, int64_t count) {
  return count >= kLanes ? load(source) : load_first(source, (size_t)count);
}

template <typename Element>
void gather_queries(const AttentionTile& tile, float* queries) {
  for (int query = 0; query < tile.num_queries; ++query) {
    for (int head = 0; head < tile.group_size; ++head, queries += tile.head_dim) {
      const Element* source =
          (const Element*)tile.queries + query * tile.query_stride + head * tile.query_head_stride;
      int d = 0;
      for (; d + kLanes <= tile.head_dim; d += kLanes)
        store(queries + d, load(source + d) * tile.scale);
      for (; d < tile.head_dim; ++d) queries[d] = load_one(source + d) * tile.scale;
    }
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

// Dimensions [0, result) of kLanes keys, which may be null for zeros. Of bfloat16, two dimensions
// are transposed at a time, as the word that they lie in; a shift or a mask takes each out.
VLLM_METAL_INLINE int gather_pairs(const Bfloat16* const* sources, int head_dim, float* keys) {
  int d = 0;
  for (; d + 2 * kLanes <= head_dim; d += 2 * kLanes) {
    Floats square[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      square[i] = sources[i] != nullptr ? load_bits<Floats>(sources[i] + d) : Floats{};
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      const Words pair = as_words(square[i]);
      store(keys + (d + 2 * i) * kKeyBlock, as_floats(pair << 16));
      store(keys + (d + 2 * i + 1) * kKeyBlock, as_floats(pair & 0xffff0000u));
    }
  }
  return d;
}
// The other types gain nothing by it.
template <typename Element>
VLLM_METAL_INLINE int gather_pairs(const Element* const*, int, float*) {
  return 0;
}

// Writes keys [head_dim, kKeyBlock]; of the columns from `count` on, those up to a whole number of
// registers become zero.
template <typename Element>
void gather_keys(const AttentionTile& tile, const int64_t* offsets, int count, float* keys) {
  for (int first = 0; first < count; first += kLanes) {
    const Element* sources[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      sources[i] = first + i < count ? (const Element*)tile.keys + offsets[first + i] : nullptr;
    }
    for (int d = gather_pairs(sources, tile.head_dim, keys + first); d < tile.head_dim;
         d += kLanes) {
      Floats square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        square[i] =
            sources[i] != nullptr ? load_up_to(sources[i] + d, tile.head_dim - d) : Floats{};
      }
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(keys + (d + i) * kKeyBlock + first, square[i]);
    }
  }
}

template <typename Element>
void gather_values(const AttentionTile& tile, const int64_t* offsets, int count, float* values) {
  const Element* cache = (const Element*)tile.values;
  for (int i = 0; i < count; ++i, values += padded(tile.head_dim)) {
    for (int d = 0; d < tile.head_dim; d += kLanes)
      store(values + d, load_up_to(cache + offsets[i] + d, tile.head_dim - d));
  }
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
