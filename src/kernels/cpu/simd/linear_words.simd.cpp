// SPDX-License-Identifier: Apache-2.0
// Streaming products with weights of 2, 4 or 8 bits. Each lane of a register holds one packed word,
// so that its values are masked, converted and multiplied without a shuffle (words_input.h has
// the picture). Scales are applied lane by lane, biases to the sums of the input over groups:
// sum(x * (s * q + b)) = s * sum(x * q) + b * sum(x).
#include "kernels/cpu/simd/streaming.h"
#include "kernels/cpu/simd/words_input.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

namespace {

// Lane l of the result is lane index[l] of `values`.
VLLM_METAL_INLINE Floats pick_lanes(Floats values, Ints index) {
#if VLLM_METAL_VECTOR_BYTES == 64
  return (Floats)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)index, (__m512)values);
#elif VLLM_METAL_VECTOR_BYTES == 32
  return (Floats)_mm256_permutevar8x32_ps((__m256)values, (__m256i)index);
#else
  return Floats{values[index[0]], values[index[1]], values[index[2]], values[index[3]]};
#endif
}

// Converts rows [row, row + num_rows) of scales or biases; zero beyond the last group of a row.
inline void load_groups(const WordsInput& layout, const void* source, ElementType type,
                        int64_t stride, int64_t row, int num_rows, float* groups) {
  with_elements(source, type, [&](const auto* elements) {
    elements += row * stride;
    for (int r = 0; r < num_rows; ++r, elements += stride, groups += layout.group_stride()) {
      int64_t group = 0;
      for (; group + kLanes <= layout.num_groups; group += kLanes) {
        store(groups + group, load(elements + group));
      }
      if (group < layout.num_groups) {
        store(groups + group, load_first(elements + group, layout.num_groups - group));
      }
    }
  });
}

template <int Bits>
struct WordsTile {
  static constexpr int kValues = 32 / Bits;

  const WeightRows& weight;
  const WordsInput& layout;
  const float* input;
  float* sums;  // [num_tokens, sums_stride], of rows from `begin` on
  int64_t sums_stride;
  int64_t begin;
  float* scales;  // [kMaxTileRows, group_stride]
  float* biases;  // [kMaxTileRows, group_stride]

  // Value `value` of each word, 2^(Bits * value) times too large except for the last.
  static VLLM_METAL_INLINE Floats values_of(Words words, int value) {
    if (value == kValues - 1) return to_floats(words >> (32 - Bits));
    return to_floats(words & (((1u << Bits) - 1u) << (Bits * value)));
  }

  // Adds one register of words of each row to the totals; `x` is its packed input.
  template <int Rows, int Tokens>
  VLLM_METAL_INLINE void add_words(const Words (&words)[Rows], const Floats (&scale)[Rows],
                                   const float* x, Floats (&totals)[Rows][Tokens]) const {
    Floats partial[Rows] = {};
    VLLM_METAL_UNROLL
    for (int value = 0; value < kValues; ++value) {
      Floats factor[Rows];
      VLLM_METAL_UNROLL
      for (int r = 0; r < Rows; ++r) {
        factor[r] = values_of(words[r], value);
        if constexpr (Tokens > 1) factor[r] *= scale[r];
      }
      VLLM_METAL_UNROLL
      for (int t = 0; t < Tokens; ++t) {
        const Floats in = load(x + (value * Tokens + t) * kLanes);
        VLLM_METAL_UNROLL
        for (int r = 0; r < Rows; ++r) {
          if constexpr (Tokens == 1) {
            partial[r] = fma(factor[r], in, partial[r]);
          } else {
            totals[r][t] = fma(factor[r], in, totals[r][t]);
          }
        }
      }
    }
    if constexpr (Tokens == 1) {
      VLLM_METAL_UNROLL
      for (int r = 0; r < Rows; ++r) totals[r][0] = fma(partial[r], scale[r], totals[r][0]);
    }
  }

  template <int Rows, int Tokens>
  VLLM_METAL_INLINE void add_biases(const float* group_sums, Floats (&totals)[Rows][Tokens]) const {
    for (int64_t group = 0; group < layout.padded_groups; group += kLanes) {
      VLLM_METAL_UNROLL
      for (int t = 0; t < Tokens; ++t) {
        const Floats sum = load(group_sums + group * Tokens + t * kLanes);
        VLLM_METAL_UNROLL
        for (int r = 0; r < Rows; ++r) {
          const Floats bias = load(biases + r * layout.group_stride() + group);
          totals[r][t] = fma(bias, sum, totals[r][t]);
        }
      }
    }
  }

  template <int Rows, int Tokens>
  void run(int64_t row, int64_t token) const {
    load_groups(layout, weight.scales, weight.type, weight.scales_stride, row, Rows, scales);
    load_groups(layout, weight.biases, weight.type, weight.biases_stride, row, Rows, biases);
    const int32_t* first_group = (const int32_t*)input;
    const float* lane_group = input + layout.lane_group_offset;
    const float* x = input + layout.tokens_offset + token * layout.token_floats;
    const uint32_t* packed = (const uint32_t*)weight.elements + row * weight.stride;
    Floats totals[Rows][Tokens] = {};
    const auto step = [&](const auto& load_words) __attribute__((always_inline)) {
      const Ints index = load_bits<Ints>(lane_group);
      const float* first_scale = scales + *first_group;
      Words words[Rows];
      Floats scale[Rows];
      VLLM_METAL_UNROLL
      for (int r = 0; r < Rows; ++r) {
        words[r] = load_words(packed + r * weight.stride);
        prefetch_ahead(packed + r * weight.stride);
        scale[r] = pick_lanes(load(first_scale + r * layout.group_stride()), index);
      }
      add_words(words, scale, x, totals);
      ++first_group;
      lane_group += kLanes;
      packed += kLanes;
      x += kValues * Tokens * kLanes;
    };
    const int64_t whole = layout.num_words / kLanes;
    for (int64_t i = 0; i < whole; ++i) {
      step([](const uint32_t* source) { return load_bits<Words>(source); });
    }
    if (const int64_t rest = layout.num_words - whole * kLanes; rest > 0) {
      step([rest](const uint32_t* source) { return load_first_bits<Words>(source, rest); });
    }
    add_biases(x, totals);
    VLLM_METAL_UNROLL
    for (int t = 0; t < Tokens; ++t) {
      VLLM_METAL_UNROLL
      for (int r = 0; r < Rows; ++r) {
        sums[(token + t) * sums_stride + (row - begin) + r] = horizontal_sum(totals[r][t]);
      }
    }
  }
};

int64_t input_floats(const WeightRows& weight, int64_t num_tokens) {
  return WordsInput(weight).floats(num_tokens);
}

int64_t scratch_floats(const WeightRows& weight, int64_t num_tokens, int64_t num_features) {
  return num_tokens * num_features + 2 * kMaxTileRows * WordsInput(weight).group_stride();
}

void pack(const WeightRows& weight, const TokenRows& tokens, float* input) {
  const WordsInput layout(weight);
  pack_groups(layout, (int32_t*)input, (int32_t*)(input + layout.lane_group_offset));
  float* packed = input + layout.tokens_offset;
  float* converted = packed + tokens.num_tokens * layout.token_floats;
  with_elements(tokens.elements, tokens.type, [&](const auto* x) {
    for (int64_t token = 0; token < tokens.num_tokens; ++token, x += tokens.stride) {
      const PackedToken place(token, tokens.num_tokens, layout.token_floats);
      to_float32(x, weight.in_features, converted);
      pack_token(layout, converted, place, packed + place.offset);
    }
  });
}

void run(const WeightRows& weight, const float* input, int64_t num_tokens, int64_t begin,
         int64_t end, const LinearOutput& output, float* scratch) {
  const WordsInput layout(weight);
  float* sums = scratch;
  float* scales = sums + num_tokens * (end - begin);
  float* biases = scales + kMaxTileRows * layout.group_stride();
  const auto sum_words = [&]<int Bits>() {
    const WordsTile<Bits> tile{.weight = weight,
                               .layout = layout,
                               .input = input,
                               .sums = sums,
                               .sums_stride = end - begin,
                               .begin = begin,
                               .scales = scales,
                               .biases = biases};
    cover(tile, num_tokens, begin, end);
  };
  if (weight.bits == 2) sum_words.template operator()<2>();
  if (weight.bits == 4) sum_words.template operator()<4>();
  if (weight.bits == 8) sum_words.template operator()<8>();
  for (int64_t token = 0; token < num_tokens; ++token) {
    write_features(output, weight.out_features, token, begin, end - begin,
                   sums + token * (end - begin));
  }
}

}  // namespace

bool is_word_aligned(const WeightRows& weight) {
  return (weight.bits == 2 || weight.bits == 4 || weight.bits == 8) &&
         weight.group_size * weight.bits % 32 == 0;
}

const StreamingKernels words_kernels = {input_floats, scratch_floats, pack, run};

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
