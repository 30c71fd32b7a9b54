// SPDX-License-Identifier: Apache-2.0
// Scores, queries · keys: keys lie across the lanes of a register, from a transposed copy or
// transposed as they are read, and a score is summed over steps of one or two dimensions in order.
// Internal to attention.simd.cpp.
#pragma once

#include "kernels/cpu/simd/attention.h"
#include "kernels/cpu/simd/attention_gather.h"
#include "kernels/cpu/simd/attention_products.h"
#include "kernels/cpu/simd/transpose.h"
#include "kernels/cpu/simd/vector.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

// A step is one dimension in float32; queries are scaled.
template <typename Element>
struct ScoreSteps {
  static constexpr bool kIsScaled = true;
  static VLLM_METAL_INLINE int count(int head_dim) { return head_dim; }

  static VLLM_METAL_INLINE void gather_query(const Element* source, int head_dim, float scale,
                                             float* query) {
    int d = 0;
    for (; d + kLanes <= head_dim; d += kLanes) store(query + d, load(source + d) * scale);
    for (; d < head_dim; ++d) query[d] = load_one(source + d) * scale;
  }

  static VLLM_METAL_INLINE Floats add(const float* query, Floats keys, Floats sums) {
    return fma(*query, keys, sums);
  }
};

// Calls f(d, lanes) for each dimension d in order: that dimension of kLanes keys.
template <typename Element, typename Function>
VLLM_METAL_INLINE void transpose_dimensions(const Element* const* keys, int begin, int head_dim,
                                            Prefetcher& next, const Function& f) {
  for (int d = begin; d < head_dim; d += kLanes) {
    Floats square[kLanes];
    VLLM_METAL_UNROLL
    for (int i = 0; i < kLanes; ++i) square[i] = load_up_to(keys[i] + d, head_dim - d);
    transpose(square);
    VLLM_METAL_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      if (d + i >= head_dim) break;
      next.advance<kLanes*(int)sizeof(Element)>(i);
      f(d + i, square[i]);
    }
  }
}

// Calls f(step, lanes) for each step in order: its dimensions of kLanes keys.
template <typename Element, typename Function>
VLLM_METAL_INLINE void for_each_step(const Element* const* keys, int head_dim, Prefetcher& next,
                                     const Function& f) {
  transpose_dimensions(keys, 0, head_dim, next, f);
}

#if defined(__AVX512BF16__)

// A step is a pair of dimensions, as the word that they lie in, of keys and queries: nothing is
// converted or rounded but the sums, and those are scaled; numbers below 2^-126 count as zero. An
// odd last dimension is paired with zeros.
template <>
struct ScoreSteps<Bfloat16> {
  static constexpr bool kIsScaled = false;
  static VLLM_METAL_INLINE int count(int head_dim) { return (head_dim + 1) / 2; }

  static VLLM_METAL_INLINE void gather_query(const Bfloat16* source, int head_dim, float,
                                             float* query) {
    query[(head_dim - 1) / 2] = 0;
    __builtin_memcpy(query, source, head_dim * sizeof(Bfloat16));
  }

  static VLLM_METAL_INLINE Floats add(const float* query, Floats keys, Floats sums) {
    uint32_t pair;
    __builtin_memcpy(&pair, query, sizeof(pair));
    return add_pair_products(as_words(keys), pair, sums);
  }
};

template <typename Function>
VLLM_METAL_INLINE void for_each_step(const Bfloat16* const* keys, int head_dim, Prefetcher& next,
                                     const Function& f) {
  for (int d = 0; d < head_dim; d += 2 * kLanes) {
    const int left = head_dim - d;
    Floats square[kLanes];
    if (left >= 2 * kLanes) {
      VLLM_METAL_UNROLL
      for (int i = 0; i < kLanes; ++i) square[i] = load_bits<Floats>(keys[i] + d);
    } else {
      VLLM_METAL_UNROLL
      for (int i = 0; i < kLanes; ++i) square[i] = as_floats(load_pairs(keys[i] + d, left));
    }
    transpose(square);
    VLLM_METAL_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      if (2 * i >= left) break;
      next.advance<2 * kLanes*(int)sizeof(Bfloat16)>(i);
      f(d / 2 + i, square[i]);
    }
  }
}

#else

// Of bfloat16, two dimensions are transposed at a time, as the word that they lie in; a shift or a
// mask takes each out. Float16 gains nothing by it.
template <typename Function>
VLLM_METAL_INLINE void for_each_step(const Bfloat16* const* keys, int head_dim, Prefetcher& next,
                                     const Function& f) {
  int d = 0;
  for (; d + 2 * kLanes <= head_dim; d += 2 * kLanes) {
    Floats square[kLanes];
    VLLM_METAL_UNROLL
    for (int i = 0; i < kLanes; ++i) square[i] = load_bits<Floats>(keys[i] + d);
    transpose(square);
    VLLM_METAL_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      next.advance<2 * kLanes*(int)sizeof(Bfloat16)>(i);
      const Words pair = as_words(square[i]);
      f(d + 2 * i, as_floats(pair << 16));
      f(d + 2 * i + 1, as_floats(pair & 0xffff0000u));
    }
  }
  transpose_dimensions(keys, d, head_dim, next, f);
}

#endif

// Writes queries [num_rows, head_dim], each as its steps.
template <typename Element>
void gather_queries(const AttentionTile& tile, float* queries) {
  const int num_rows = num_rows_of(tile);
  for (int row = 0; row < num_rows; ++row) {
    const Element* source = (const Element*)tile.queries + query_of(tile, row) * tile.query_stride +
                            head_of(tile, row) * tile.query_head_stride;
    ScoreSteps<Element>::gather_query(source, tile.head_dim, tile.scale,
                                      queries + (int64_t)row * tile.head_dim);
  }
}

// Keys [first, first + kLanes) of those at `offsets`.
template <typename Element>
VLLM_METAL_INLINE void find_keys(const AttentionTile& tile, const int64_t* offsets, int first,
                                 const Element** keys) {
  for (int i = 0; i < kLanes; ++i) keys[i] = (const Element*)tile.keys + offsets[first + i];
}

// Writes keys [steps, kKeyBlock], the first `count` of them and what lies at the offsets up to a
// whole number of registers.
template <typename Element>
void gather_keys(const AttentionTile& tile, const int64_t* offsets, Prefetcher& next, int count,
                 float* keys) {
  for (int first = 0; first < count; first += kLanes) {
    const Element* sources[kLanes];
    find_keys(tile, offsets, first, sources);
    for_each_step(sources, tile.head_dim, next,
                  [target = keys + first](int step, Floats lanes)
                      __attribute__((always_inline)) { store(target + step * kKeyBlock, lanes); });
  }
}

// What gather_keys wrote, as rows of a product.
template <typename Element>
struct KeyRows : FloatRows {
  static VLLM_METAL_INLINE Floats add(const float* query, Floats keys, Floats sums) {
    return ScoreSteps<Element>::add(query, keys, sums);
  }
};

// From sums of steps to scores, [num_rows, kKeyBlock], of the first `count` keys.
template <typename Element>
VLLM_METAL_INLINE void finish_scores(float* scores, int num_rows, int count, float scale) {
  if constexpr (!ScoreSteps<Element>::kIsScaled) {
    for (int row = 0; row < num_rows; ++row, scores += kKeyBlock) {
      for (int key = 0; key < count; key += kLanes) store(scores + key, load(scores + key) * scale);
    }
  }
}

// Scores [kRows, kKeyBlock] of `kRows` query rows [kRows, head_dim] with the keys, from where they
// lie.
template <int kRows, typename Element>
void score_keys(const AttentionTile& tile, const int64_t* offsets, Prefetcher& next, int count,
                const float* queries, float* scores) {
  typedef ScoreSteps<Element> Steps;
  for (int first = 0; first < count; first += kLanes) {
    const Element* keys[kLanes];
    find_keys(tile, offsets, first, keys);
    Floats sums[kRows] = {};
    for_each_step(keys, tile.head_dim, next,
                  [&, head_dim = tile.head_dim](int step, Floats lanes)
                      __attribute__((always_inline)) {
                        VLLM_METAL_UNROLL
                        for (int row = 0; row < kRows; ++row)
                          sums[row] = Steps::add(queries + row * head_dim + step, lanes, sums[row]);
                      });
    VLLM_METAL_UNROLL
    for (int row = 0; row < kRows; ++row)
      store(scores + row * kKeyBlock + first,
            Steps::kIsScaled ? sums[row] : sums[row] * tile.scale);
  }
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
