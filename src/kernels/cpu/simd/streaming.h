// SPDX-License-Identifier: Apache-2.0
// Products of a few tokens with streamed weight rows are made in tiles of rows by tokens, whose
// sums stay in registers.
#pragma once

#include "kernels/cpu/simd/linear_parts.h"
#include "kernels/cpu/simd/vector.h"
#include "kernels/cpu/simd/weight_rows.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

constexpr int kMaxTileTokens = kNumRegisters == 32 ? 8 : 4;
constexpr int kMaxTileRows = 4;

// Few tokens leave registers for more rows, which gives independent sums to overlap. With one token
// memory is what counts: it is fastest read from first to last.
template <int Tokens>
constexpr int kTileRows = Tokens == 1                          ? 1
                          : Tokens <= 4 && kNumRegisters == 32 ? kMaxTileRows
                                                               : 2;

// Weights are prefetched this far ahead of their use: a row is too short for the processor to
// notice in time that it is being streamed.
constexpr int64_t kPrefetchBytes = 4096;

VLLM_METAL_INLINE void prefetch_ahead(const void* weights) {
  __builtin_prefetch((const char*)weights + kPrefetchBytes);
}

// The packed input of kMaxTileTokens tokens, or of what is left at the end, is interleaved register
// by register, so that a tile walks through it with one pointer:
//
//   | register 0 of tokens 0 1 ... 7 | register 1 of tokens 0 1 ... 7 | ...
//
// This is where token `token` begins; its registers are `step` floats apart.
struct PackedToken {
  PackedToken(int64_t token, int64_t num_tokens, int64_t token_floats) {
    const int64_t first = token / kMaxTileTokens * kMaxTileTokens;
    const int64_t rest = num_tokens - first;
    offset = first * token_floats + (token - first) * kLanes;
    step = (rest < kMaxTileTokens ? rest : kMaxTileTokens) * kLanes;
  }
  int64_t offset;
  int64_t step;
};

// Calls tile.template run<Rows, Tokens>(row, token) for tiles that cover rows [begin, end) by
// `Tokens` tokens from `token` on.
template <int Tokens, typename Tile>
inline void cover_rows(const Tile& tile, int64_t begin, int64_t end, int64_t token) {
  constexpr int kRows = kTileRows<Tokens>;
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows) tile.template run<kRows, Tokens>(row, token);
  for (; row < end; ++row) tile.template run<1, Tokens>(row, token);
}

template <int Tokens, typename Tile>
inline void cover_last_tokens(const Tile& tile, int64_t begin, int64_t end, int64_t token,
                              int64_t count) {
  if (count == Tokens) return cover_rows<Tokens>(tile, begin, end, token);
  if constexpr (Tokens > 1) cover_last_tokens<Tokens - 1>(tile, begin, end, token, count);
}

// All tokens by rows [begin, end).
template <typename Tile>
inline void cover(const Tile& tile, int64_t num_tokens, int64_t begin, int64_t end) {
  int64_t token = 0;
  for (; num_tokens - token > kMaxTileTokens; token += kMaxTileTokens) {
    cover_rows<kMaxTileTokens>(tile, begin, end, token);
  }
  cover_last_tokens<kMaxTileTokens>(tile, begin, end, token, num_tokens - token);
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
