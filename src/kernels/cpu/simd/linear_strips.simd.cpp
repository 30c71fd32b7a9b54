// SPDX-License-Identifier: Apache-2.0
// Streaming products with matrices in strips (strips.h). Lanes are rows; the input's values are
// broadcast. Scales are applied to the sums of groups, biases to the sums of the input over groups:
// sum(x * (s * q + b)) = s * sum(x * q) + b * sum(x).
#include "kernels/cpu/simd/strip_steps.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

namespace {

// Packed input: the steps of all tokens [num_tokens, steps of in_features], then sums over groups
// [num_tokens, num_groups].
template <template <int> class Steps>
int64_t inputs_of_token(const WeightRows& weight) {
  return weight.in_features / kChunkColumns * Steps<8>::kSteps;
}

template <template <int> class Steps>
int64_t input_floats(const WeightRows& weight, int64_t num_tokens) {
  return num_tokens * (inputs_of_token<Steps>(weight) + weight.in_features / weight.group_size);
}

int64_t scratch_floats(const WeightRows& weight, int64_t num_tokens, int64_t num_features) {
  return num_tokens * round_up(num_features, kStripRows);
}

template <typename Steps, typename Element>
void pack_token(const WeightRows& weight, const Element* x, typename Steps::Input* packed,
                float* group_sums) {
  for (int64_t group = 0; group < weight.in_features; group += weight.group_size) {
    Floats sums = {};
    for (int64_t i = group; i < group + weight.group_size; i += kChunkColumns) {
      ChunkInput chunk;
      VLLM_METAL_UNROLL
      for (int j = 0; j < kChunkRegisters; ++j) {
        chunk[j] = load(x + i + j * kLanes);
        sums += chunk[j];
      }
      Steps::pack(chunk, packed);
      packed += Steps::kSteps;
    }
    *group_sums++ = horizontal_sum(sums);
  }
}

template <template <int> class Steps>
void pack(const WeightRows& weight, const TokenRows& tokens, int64_t begin, int64_t end,
          float* input) {
  const int64_t inputs = inputs_of_token<Steps>(weight);
  const int64_t num_groups = weight.in_features / weight.group_size;
  float* group_sums = input + tokens.num_tokens * inputs;
  with_elements(tokens.elements, tokens.type, [&](const auto* x) {
    with_bits(weight.bits, [&]<int Bits>() {
      typedef typename Steps<Bits>::Input Input;
      for (int64_t token = begin; token < end; ++token)
        pack_token<Steps<Bits>>(weight, x + token * tokens.stride, (Input*)input + token * inputs,
                                group_sums + token * num_groups);
    });
  });
}

// Registers that hold a word of each row of a strip.
constexpr int kRegistersPerStrip = kStripRows / kLanes;

// The sums of a tile of rows by tokens, its totals and what they are made from are in registers.
// Two registers of rows halve the loads of the input.
constexpr int kTileRegisters = 2;
constexpr int kTileTokens = kNumRegisters == 32 ? 6 : 3;
constexpr int kTileStrips = kTileRegisters > kRegistersPerStrip ? 2 : 1;

template <typename Scale, typename Steps>
struct StripTile {
  typedef typename Steps::Input Input;

  StripLayout layout;
  int64_t inputs;  // of a token

  // Products of `Registers` registers of rows, which begin at lane `first_lane` of `strip` and go
  // on in the next, with `Tokens` tokens. x, group_sums: of the first token. Row r of the strip
  // goes to sums[token * sums_stride + r].
  template <int Registers, int Tokens>
  void run(const char* strip, int64_t first_lane, const Input* x, const float* group_sums,
           float* sums, int64_t sums_stride) const {
    const char* words[Registers];
    VLLM_METAL_UNROLL
    for (int r = 0; r < Registers; ++r)
      words[r] = strip + r / kRegistersPerStrip * layout.strip_bytes + lane_of(first_lane, r) * 4;
    Floats totals[Registers][Tokens] = {};
    for (int64_t group = 0; group < layout.num_groups; ++group) {
      Floats partial[Registers][Tokens] = {};
      for (int64_t chunk = 0; chunk < layout.chunks_per_group; ++chunk) {
        add_chunk(words, x, partial);
        VLLM_METAL_UNROLL
        for (int r = 0; r < Registers; ++r) words[r] += layout.chunk_bytes;
        x += Steps::kSteps;
      }
      VLLM_METAL_UNROLL
      for (int r = 0; r < Registers; ++r) {
        const int64_t lane = lane_of(first_lane, r);
        const Scale* scales = (const Scale*)(words[r] - lane * 4) + lane;
        const Floats scale = load(scales), bias = load(scales + kStripRows);
        VLLM_METAL_UNROLL
        for (int t = 0; t < Tokens; ++t) {
          totals[r][t] = fma(partial[r][t], scale, totals[r][t]);
          totals[r][t] = fma(group_sums[t * layout.num_groups + group], bias, totals[r][t]);
        }
        words[r] += 2 * layout.scales_bytes;
      }
    }
    VLLM_METAL_UNROLL
    for (int r = 0; r < Registers; ++r) {
      VLLM_METAL_UNROLL
      for (int t = 0; t < Tokens; ++t)
        store(sums + t * sums_stride + first_lane + r * kLanes, totals[r][t]);
    }
  }

  static constexpr int64_t lane_of(int64_t first_lane, int r) {
    return first_lane + r % kRegistersPerStrip * kLanes;
  }

  template <int Registers, int Tokens>
  VLLM_METAL_INLINE void add_chunk(const char* const (&words)[Registers], const Input* x,
                                   Floats (&partial)[Registers][Tokens]) const {
#pragma GCC unroll 2
    for (int half = 0; half < Steps::kSteps; half += 16) {
      VLLM_METAL_UNROLL
      for (int step = half; step < half + 16; ++step) {
        typename Steps::Weights weights[Registers];
        VLLM_METAL_UNROLL
        for (int r = 0; r < Registers; ++r)
          weights[r] = Steps::weights((const uint32_t*)words[r], step);
        VLLM_METAL_UNROLL
        for (int t = 0; t < Tokens; ++t) {
          const Input input = x[t * inputs + step];
          VLLM_METAL_UNROLL
          for (int r = 0; r < Registers; ++r)
            partial[r][t] = Steps::multiply_add(input, weights[r], partial[r][t]);
        }
      }
    }
  }

  // `Strips` strips by all tokens.
  template <int Strips>
  void run_strips(const char* strip, const Input* x, const float* group_sums, int64_t num_tokens,
                  float* sums, int64_t sums_stride) const {
    int64_t token = 0;
    while (token < num_tokens) {
      const int64_t rest = num_tokens - token;
      const int64_t count = rest < kTileTokens ? rest : kTileTokens;
      run_tokens<Strips, kTileTokens>(count, strip, x + token * inputs,
                                      group_sums + token * layout.num_groups,
                                      sums + token * sums_stride, sums_stride);
      token += count;
    }
  }

  template <int Strips, int Tokens>
  void run_tokens(int64_t count, const char* strip, const Input* x, const float* group_sums,
                  float* sums, int64_t sums_stride) const {
    if (count < Tokens) {
      if constexpr (Tokens > 1)
        run_tokens<Strips, Tokens - 1>(count, strip, x, group_sums, sums, sums_stride);
      return;
    }
    // One token has no loads to share, and memory is fastest read from first to last.
    constexpr int kAll = Strips * kRegistersPerStrip;
    constexpr int kWanted = Tokens == 1 ? kRegistersPerStrip : kTileRegisters;
    constexpr int kRegisters = kAll < kWanted ? kAll : kWanted;
    for (int first = 0; first < kAll; first += kRegisters) {
      const int at = first / kRegistersPerStrip;
      run<kRegisters, Tokens>(strip + at * layout.strip_bytes, first % kRegistersPerStrip * kLanes,
                              x, group_sums, sums + at * kStripRows, sums_stride);
    }
  }
};

// Rows [begin, end); `begin` is a multiple of kStripRows.
template <template <int> class Steps>
void run(const WeightRows& weight, const float* input, int64_t num_tokens, int64_t begin,
         int64_t end, const LinearOutput& output, float* scratch) {
  const StripLayout layout(weight);
  const int64_t inputs = inputs_of_token<Steps>(weight);
  const float* group_sums = input + num_tokens * inputs;
  const int64_t stride = round_up(end - begin, kStripRows);
  with_elements(weight.elements, weight.type, [&]<typename Scale>(const Scale*) {
    with_bits(weight.bits, [&]<int Bits>() {
      const StripTile<Scale, Steps<Bits>> tile{layout, inputs};
      const auto* x = (const typename Steps<Bits>::Input*)input;
      const char* strip = (const char*)weight.elements + begin / kStripRows * layout.strip_bytes;
      int64_t row = begin;
      for (; row + (kTileStrips - 1) * kStripRows < end; row += kTileStrips * kStripRows) {
        tile.template run_strips<kTileStrips>(strip, x, group_sums, num_tokens,
                                              scratch + (row - begin), stride);
        strip += kTileStrips * layout.strip_bytes;
      }
      if (row < end)
        tile.template run_strips<1>(strip, x, group_sums, num_tokens, scratch + (row - begin),
                                    stride);
    });
  });
  for (int64_t token = 0; token < num_tokens; ++token)
    write_features(output, weight.out_features, token, begin, end - begin,
                   scratch + token * stride);
}

template <template <int> class Steps>
constexpr StreamingKernels kKernels = {input_floats<Steps>, scratch_floats, pack<Steps>, run<Steps>,
                                       Steps<8>::kMaxTokens};

}  // namespace

const StreamingKernels& strips_kernels(ElementType activations) {
#if defined(__AVX512BF16__)
  if (activations == ElementType::kBfloat16) return kKernels<PairSteps>;
#endif
  return kKernels<FloatSteps>;
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
