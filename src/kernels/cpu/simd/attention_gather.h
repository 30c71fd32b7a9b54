// SPDX-License-Identifier: Apache-2.0
// Where the rows of a tile and of the cache lie, and values brought to where the inner loops read
// them, as float32. Internal to attention.simd.cpp.
#pragma once

#include "kernels/cpu/simd/attention.h"
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

// Brings what is read next near, some thousand cycles before: a line of 64 bytes for each that is
// read now, in the order in which they lie, which is how memory is fastest. Line by line, since few
// can be under way at once: those of a burst wait, and what is read now behind them. To the second
// cache, where there is room for them. The machine's own prefetching is of no use between rows of
// one head, nor from block to block.
class Prefetcher {
 public:
  // Rows of `row_bytes` at offsets in elements.
  template <typename Element>
  Prefetcher(const Element* cache, const int64_t* offsets, int num_rows, int64_t row_bytes)
      : cache_((const char*)cache),
        offsets_(offsets),
        rows_left_(num_rows),
        row_bytes_(row_bytes),
        element_bytes_(sizeof(Element)) {}

  // For the `index`-th time that kBytes are read.
  template <int kBytes>
  VLLM_METAL_INLINE void advance(int index) {
    constexpr int kEvery = kBytes < kLine ? kLine / kBytes : 1;
    if (index % kEvery != 0) return;
    for (int i = 0; i < kBytes * kEvery; i += kLine) advance_line();
  }

 private:
  static constexpr int kLine = 64;

  VLLM_METAL_INLINE void advance_line() {
    if (line_ >= row_end_) {
      if (rows_left_ == 0) return;
      --rows_left_;
      line_ = cache_ + *offsets_++ * element_bytes_;
      row_end_ = line_ + row_bytes_;
    }
    __builtin_prefetch(line_, 0, 2);
    line_ += kLine;
  }

  const char* cache_;
  const int64_t* offsets_;  // of the rows that are left
  int rows_left_;
  int64_t row_bytes_;
  int64_t element_bytes_;
  const char* line_ = nullptr;
  const char* row_end_ = nullptr;
};

// Of the block after the one at work.
struct NextBlock {
  Prefetcher keys;
  Prefetcher values;
};

// The next kWidth registers of a row of values of which `count` elements are left, zero beyond
// them.
template <int kWidth, typename Element>
VLLM_METAL_INLINE void load_values(const Element* source, int64_t count, Floats (&values)[kWidth]) {
  VLLM_METAL_UNROLL
  for (int i = 0; i < kWidth; ++i) values[i] = load_up_to(source + i * kLanes, count - i * kLanes);
}

template <typename Element>
VLLM_METAL_INLINE void store_up_to(Element* target, int64_t count, Floats values) {
  if (count >= kLanes) return store(target, values);
  store_first(target, values, (size_t)count);
}

// The reverse: two registers to the next `count` elements, more than kLanes.
template <typename Element>
VLLM_METAL_INLINE void store_values(Element* target, int64_t count, const Floats (&values)[2]) {
  store(target, values[0]);
  store_up_to(target + kLanes, count - kLanes, values[1]);
}

#if defined(__AVX512BF16__)

// Of bfloat16, the even dimensions of two registers, then the odd ones: a shift or a mask takes
// each out of the words that they lie in.
template <int kWidth>
VLLM_METAL_INLINE void load_values(const Bfloat16* source, int64_t count,
                                   Floats (&values)[kWidth]) {
  if constexpr (kWidth == 1) {
    values[0] = load_up_to(source, count);
  } else {
    VLLM_METAL_UNROLL
    for (int i = 0; i < kWidth; i += 2) {
      const Words pairs = load_pairs(source + i * kLanes, count - i * kLanes);
      values[i] = as_floats(pairs << 16);
      values[i + 1] = as_floats(pairs & 0xffff0000u);
    }
  }
}

VLLM_METAL_INLINE void store_values(Bfloat16* target, int64_t count, const Floats (&values)[2]) {
  store_pairs(target, count, widen(to_bfloat16(values[0])) | widen(to_bfloat16(values[1])) << 16);
}

#endif

template <typename Element>
void gather_values(const AttentionTile& tile, const int64_t* offsets, Prefetcher& next, int count,
                   float* values) {
  const Element* cache = (const Element*)tile.values;
  for (int i = 0; i < count; ++i, values += padded(tile.head_dim)) {
    const Element* source = cache + offsets[i];
    int d = 0;
    for (; d + kLanes < tile.head_dim; d += 2 * kLanes) {
      Floats pair[2];
      next.advance<2 * kLanes*(int)sizeof(Element)>(i);
      load_values(source + d, tile.head_dim - d, pair);
      store(values + d, pair[0]);
      store(values + d + kLanes, pair[1]);
    }
    if (d < tile.head_dim) store(values + d, load_up_to(source + d, tile.head_dim - d));
  }
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
