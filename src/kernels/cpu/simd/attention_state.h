// SPDX-License-Identifier: Apache-2.0
// The softmax of a tile's rows over some of their keys, and how the states of several ranges of
// keys become one, and then outputs. Internal to attention.simd.cpp.
#pragma once

#include "kernels/cpu/simd/attention.h"
#include "kernels/cpu/simd/attention_gather.h"
#include "kernels/cpu/simd/attention_softmax.h"
#include "kernels/cpu/simd/vector.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

// Hands out consecutive pieces of a buffer, each a multiple of 64 bytes; without a buffer it only
// counts.
struct Pieces {
  float* buffer;
  int64_t used = 0;

  float* take(int64_t floats) {
    float* piece = buffer == nullptr ? nullptr : buffer + used;
    used += (floats + 15) / 16 * 16;
    return piece;
  }
};

// The softmax of each row over some of its keys, not yet divided by its sum.
struct State {
  float* max;      // [num_rows] highest score
  float* sum;      // [num_rows] of exp(score - max)
  float* outputs;  // [num_rows, padded(head_dim)] sums of exp(score - max) * value, see load_values
};

// The rows from `row` on.
VLLM_METAL_INLINE State rows_from(const State& state, int row, int64_t width) {
  return {state.max + row, state.sum + row, state.outputs + row * width};
}

inline State take_state(Pieces& pieces, int num_rows, int head_dim) {
  State state;
  state.max = pieces.take(num_rows);
  state.sum = pieces.take(num_rows);
  state.outputs = pieces.take(num_rows * padded(head_dim));
  return state;
}

// Merges what `from` covers into `into`, row by row. Not inlined: wherever it is called from, it
// must round alike.
inline __attribute__((noinline)) void merge(State into, State from, int num_rows, int64_t width) {
  for (int row = 0; row < num_rows; ++row) {
    const float highest = into.max[row] > from.max[row] ? into.max[row] : from.max[row];
    const float old_factor = exp_one(into.max[row] - highest);
    const float new_factor = exp_one(from.max[row] - highest);
    into.max[row] = highest;
    into.sum[row] = into.sum[row] * old_factor + from.sum[row] * new_factor;
    float* target = into.outputs + row * width;
    const float* source = from.outputs + row * width;
    for (int64_t d = 0; d < width; d += kLanes)
      store(target + d, load(target + d) * old_factor + load(source + d) * new_factor);
  }
}

// Adds the weight of each row's sink to its sum.
inline void join_sinks(const AttentionTile& tile, const State& state) {
  for (int row = 0; row < num_rows_of(tile); ++row) {
    const float sink = tile.sinks[head_of(tile, row)];
    const float highest = state.max[row] > sink ? state.max[row] : sink;
    const float factor = exp_one(state.max[row] - highest);
    state.sum[row] = state.sum[row] * factor + exp_one(sink - highest);
    const int64_t width = padded(tile.head_dim);
    scale_row(state.outputs + row * width, width, factor);
  }
}

template <typename Element>
void write_output(const AttentionTile& tile, const State& state) {
  const float* source = state.outputs;
  for (int row = 0; row < num_rows_of(tile); ++row, source += padded(tile.head_dim)) {
    Element* target = (Element*)tile.output + query_of(tile, row) * tile.output_stride +
                      head_of(tile, row) * tile.head_dim;
    int d = 0;
    for (; d + kLanes < tile.head_dim; d += 2 * kLanes) {
      const Floats pair[2] = {load(source + d) / state.sum[row],
                              load(source + d + kLanes) / state.sum[row]};
      store_values(target + d, tile.head_dim - d, pair);
    }
    if (d < tile.head_dim)
      store_up_to(target + d, tile.head_dim - d, load(source + d) / state.sum[row]);
  }
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
