// SPDX-License-Identifier: Apache-2.0
// The packed input of streaming products with weights of 2, 4 or 8 bits, one word a lane:
//
//   word of lane 0        word of lane 1               one register of words
//   | w7 ... w1 w0 |      | w15 ... w9 w8 |   ...
//
//   value 0 of each:      x0  x8  x16 ...              one register of input a value
//   value 1:              x1  x9  x17 ...
//
// Value v is masked out of the word but not shifted down, so it comes out 2^(bits * v) times too
// large; its input is that much smaller.
#pragma once

#include "kernels/cpu/simd/streaming.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

// How the input of a product is laid out, in floats (or int32):
//
//   first_group [num_registers]          for each register of words, the first group that lanes
//   lane_group  [num_registers, kLanes]  take their scales from; the group of each lane less that
//   packed tokens, each of               packed values [num_registers, values_per_word, kLanes],
//                                        then sums over groups [padded_groups]
struct WordsInput {
  explicit WordsInput(const WeightRows& weight)
      : bits(weight.bits),
        group_size(weight.group_size),
        in_features(weight.in_features),
        values_per_word(32 / weight.bits),
        num_words(weight.in_features / values_per_word),
        words_per_group(weight.group_size / values_per_word),
        num_groups(weight.in_features / weight.group_size),
        num_registers(round_up(num_words, kLanes) / kLanes),
        padded_groups(round_up(num_groups, kLanes)),
        lane_group_offset(round_up(num_registers, kLanes)),
        tokens_offset(lane_group_offset + num_registers * kLanes),
        packed_floats(num_registers * values_per_word * kLanes),
        token_floats(packed_floats + padded_groups) {}

  // Scales and biases of one row in scratch. Registers of lane groups are read from any group on.
  int64_t group_stride() const { return padded_groups + kLanes; }

  // The last row is where a token is converted before it is packed.
  int64_t floats(int64_t num_tokens) const {
    return tokens_offset + num_tokens * token_floats + in_features;
  }

  int bits;
  int64_t group_size;
  int64_t in_features;
  int64_t values_per_word;
  int64_t num_words;
  int64_t words_per_group;
  int64_t num_groups;
  int64_t num_registers;
  int64_t padded_groups;
  int64_t lane_group_offset;
  int64_t tokens_offset;
  int64_t packed_floats;
  int64_t token_floats;
};

// Lanes beyond the row's end get the last group; their packed input is zero. Where it can be,
// first_group is a multiple of kLanes, as scales were when they were stored: a load that spans two
// recent stores waits for both.
inline void pack_groups(const WordsInput& layout, int32_t* first_group, int32_t* lane_group) {
  int32_t group = 0;
  int64_t words_left = layout.words_per_group;
  for (int64_t i = 0; i < layout.num_registers; ++i, lane_group += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      lane_group[lane] = group;
      if (--words_left == 0 && group + 1 < layout.num_groups) {
        ++group;
        words_left = layout.words_per_group;
      }
    }
    const int32_t aligned = lane_group[0] / kLanes * kLanes;
    const bool fits = lane_group[kLanes - 1] < aligned + kLanes;
    first_group[i] = fits ? aligned : lane_group[0];
    for (int lane = 0; lane < kLanes; ++lane) lane_group[lane] -= first_group[i];
  }
}

// Values of one token for words of kValues values, a register of words at a time.
template <int kValues>
inline void pack_values(const WordsInput& layout, const float* x, int64_t step, float* packed) {
  constexpr int kBits = 32 / kValues;
  float shrink[kValues];  // the last value is not masked but shifted down
  for (int v = 0; v < kValues; ++v) {
    shrink[v] = v + 1 < kValues ? 1.0f / (float)(1u << (kBits * v)) : 1.0f;
  }
  for (int64_t word = 0; word < layout.num_words; word += kLanes, packed += kValues * step) {
    const int64_t rest = layout.num_words - word;
    const int64_t lanes = rest < kLanes ? rest : kLanes;
    if (lanes < kLanes) {
      for (int v = 0; v < kValues; ++v) store(packed + v * step, Floats{});
    }
    for (int64_t lane = 0; lane < lanes; ++lane, x += kValues) {
      VLLM_METAL_UNROLL
      for (int v = 0; v < kValues; ++v) packed[v * step + lane] = x[v] * shrink[v];
    }
  }
}

inline void pack_group_sums(const WordsInput& layout, const float* x, int64_t step, float* packed) {
  for (int64_t first = 0; first < layout.padded_groups; first += kLanes, packed += step) {
    store(packed, Floats{});
    for (int64_t lane = 0; lane < kLanes && first + lane < layout.num_groups; ++lane) {
      Floats total = {};
      int64_t i = 0;
      for (; i + kLanes <= layout.group_size; i += kLanes) total += load(x + i);
      if (i < layout.group_size) total += load_first(x + i, layout.group_size - i);
      packed[lane] = horizontal_sum(total);
      x += layout.group_size;
    }
  }
}

// One token's values and group sums, from `packed` on.
inline void pack_token(const WordsInput& layout, const float* x, const PackedToken& place,
                       float* packed) {
  if (layout.bits == 2) pack_values<16>(layout, x, place.step, packed);
  if (layout.bits == 4) pack_values<8>(layout, x, place.step, packed);
  if (layout.bits == 8) pack_values<4>(layout, x, place.step, packed);
  packed += layout.num_registers * layout.values_per_word * place.step;
  pack_group_sums(layout, x, place.step, packed);
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
