// SPDX-License-Identifier: Apache-2.0
// Streaming products with matrices in strips (strips.h). Lanes are rows; the input's values are
// broadcast. Scales are applied to the sums of groups, biases to the sums of the input over groups:
// sum(x * (s * q + b)) = s * sum(x * q) + b * sum(x).
#include "kernels/cpu/simd/strip_results.h"
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

// Scales are converted by a switch a group, not by kernels of their own for each type, which would
// take the compiler three times as long.
template <typename Steps>
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
        Floats scale{}, bias{};
        with_elements(words[r] - lane * 4, layout.scale_type, [&](const auto* scales) {
          scale = load(scales + lane);
          bias = load(scales + kStripRows + lane);
        });
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

  // `Strips` strips by `count` tokens, at most `Tokens`.
  template <int Strips, int Tokens>
  __attribute__((noinline)) void run_tokens(int64_t count, const char* strip, const Input* x,
                                            const float* group_sums, float* sums,
                                            int64_t sums_stride) const {
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

// ---- Results ----

constexpr int64_t kTileRows = kTileStrips * kStripRows;

int64_t scratch_floats(const WeightRows& weight, int64_t num_tokens, int64_t num_features) {
  return kTileTokens * kTileRows + round_up(num_features, kTileRows);
}

// Rows [begin, end) by all tokens; `begin` is a multiple of kStripRows. Strips stay in the first
// cache while the tokens pass.
template <typename Steps, typename Element>
void run_rows(const WeightRows& weight, const float* input, int64_t num_tokens, int64_t begin,
              int64_t end, const LinearOutput& output, float* scratch) {
  const StripLayout layout(weight);
  const StripTile<Steps> tile{layout, weight.in_features / kChunkColumns * Steps::kSteps};
  const auto* inputs = (const typename Steps::Input*)input;
  const float* group_sums = input + num_tokens * tile.inputs;
  float* sums = scratch;
  float* bias = scratch + kTileTokens * kTileRows;
  read_bias(output, begin, end, bias);
  for (int64_t row = begin; row < end; row += kTileRows) {
    const char* strip = (const char*)weight.elements + row / kStripRows * layout.strip_bytes;
    const int64_t num_rows = end - row < kTileRows ? end - row : kTileRows;
    for (int64_t token = 0; token < num_tokens; token += kTileTokens) {
      const int64_t count = num_tokens - token < kTileTokens ? num_tokens - token : kTileTokens;
      const auto* x = inputs + token * tile.inputs;
      const float* token_sums = group_sums + token * layout.num_groups;
      if (num_rows > (kTileStrips - 1) * kStripRows) {
        tile.template run_tokens<kTileStrips, kTileTokens>(count, strip, x, token_sums, sums,
                                                           kTileRows);
      } else {
        tile.template run_tokens<1, kTileTokens>(count, strip, x, token_sums, sums, kTileRows);
      }
      write_tile(sums, kTileRows, bias + (row - begin), count, num_rows,
                 (Element*)output.elements + token * weight.out_features + row,
                 weight.out_features);
    }
  }
}

template <template <int> class Steps>
void run(const WeightRows& weight, const float* input, int64_t num_tokens, int64_t begin,
         int64_t end, const LinearOutput& output, float* scratch) {
  with_bits(weight.bits, [&]<int Bits>() {
    with_elements(output.elements, output.type, [&]<typename Element>(const Element*) {
      run_rows<Steps<Bits>, Element>(weight, input, num_tokens, begin, end, output, scratch);
    });
  });
}

template <template <int> class Steps>
constexpr StreamingKernels kKernels = {input_floats<Steps>, scratch_floats, pack<Steps>, run<Steps>,
                                       kMaxStreamingTokens};

}  // namespace

const StreamingKernels& strips_kernels(ElementType activations) {
#if defined(__AVX512BF16__)
  if (activations == ElementType::kBfloat16) return kKernels<PairSteps>;
#endif
  return kKernels<FloatSteps>;
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
