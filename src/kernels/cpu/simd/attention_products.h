// SPDX-License-Identifier: Apache-2.0
// The product behind both halves of attention, queries · keys and weights · values, for a few
// query rows at a time. Internal to attention.simd.cpp.
#pragma once

#include "kernels/cpu/simd/attention_gather.h"
#include "kernels/cpu/simd/vector.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

// c[row, column] += sum over i < count of a[row, i] * b[i, column], i in order; strides in floats.
// Columns are taken in whole registers. Rows says where the rows of b are.
template <typename Rows>
struct Product {
  const float* a;  // [rows, count]
  int64_t a_stride;
  Rows b;    // [count, columns]
  float* c;  // [rows, columns]
  int64_t c_stride;
  int64_t count;
  int64_t columns;
};

// Rows that follow each other in memory.
struct FloatRows {
  const float* first;
  int64_t stride;

  template <int kWidth>
  VLLM_METAL_INLINE void load_columns(int64_t row, int64_t column,
                                      Floats (&columns)[kWidth]) const {
    VLLM_METAL_UNROLL
    for (int i = 0; i < kWidth; ++i) columns[i] = load(first + row * stride + column + i * kLanes);
  }
  static VLLM_METAL_INLINE Floats add(const float* a, Floats b, Floats sums) {
    return fma(*a, b, sums);
  }
};

// Rows of the cache, converted as they are read. Lanes beyond head_dim are zero.
template <typename Element>
struct CacheRows {
  const Element* cache;
  const int64_t* offsets;  // in elements
  Prefetcher& next;
  int head_dim;

  template <int kWidth>
  VLLM_METAL_INLINE void load_columns(int64_t row, int64_t column,
                                      Floats (&columns)[kWidth]) const {
    next.advance<kWidth * kLanes*(int)sizeof(Element)>((int)row);
    load_values(cache + offsets[row] + column, head_dim - column, columns);
  }
  static VLLM_METAL_INLINE Floats add(const float* a, Floats b, Floats sums) {
    return fma(*a, b, sums);
  }
};

// Rows of a product that are computed at once.
constexpr int kMaxRows = 6;

// kRows rows by kWidth registers of columns, whose sums stay in registers.
template <int kRows, int kWidth, typename Rows>
VLLM_METAL_INLINE void add_strip(const Product<Rows>& product, int64_t column) {
  const float* a = product.a;
  float* c = product.c + column;
  Floats sums[kRows][kWidth];
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int i = 0; i < kWidth; ++i) sums[row][i] = load(c + row * product.c_stride + i * kLanes);
  }
  for (int64_t k = 0; k < product.count; ++k) {
    Floats factors[kWidth];
    product.b.load_columns(k, column, factors);
#pragma GCC unroll 6
    for (int row = 0; row < kRows; ++row) {
      const float* factor = a + row * product.a_stride + k;
#pragma GCC unroll 4
      for (int i = 0; i < kWidth; ++i) sums[row][i] = Rows::add(factor, factors[i], sums[row][i]);
    }
  }
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int i = 0; i < kWidth; ++i) store(c + row * product.c_stride + i * kLanes, sums[row][i]);
  }
}

// Few rows need more columns to keep the multipliers busy.
template <int kRows, typename Rows>
void add_rows(const Product<Rows>& product) {
  constexpr int kWidest = kRows <= 3 ? 4 : 2;
  int64_t column = 0;
  for (; column + (kWidest - 1) * kLanes < product.columns; column += kWidest * kLanes)
    add_strip<kRows, kWidest>(product, column);
  if (kWidest == 4 && column + kLanes < product.columns) {
    add_strip<kRows, 2>(product, column);
    column += 2 * kLanes;
  }
  if (column < product.columns) add_strip<kRows, 1>(product, column);
}

// The product for `num_rows` rows, 1 to kMaxRows.
template <typename Rows>
VLLM_METAL_INLINE void add_product(const Product<Rows>& product, int num_rows) {
  constexpr void (*kAddRows[kMaxRows])(const Product<Rows>&) = {
      add_rows<1, Rows>, add_rows<2, Rows>, add_rows<3, Rows>,
      add_rows<4, Rows>, add_rows<5, Rows>, add_rows<6, Rows>};
  kAddRows[num_rows - 1](product);
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
