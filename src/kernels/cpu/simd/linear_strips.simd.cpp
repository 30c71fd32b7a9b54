// SPDX-License-Identifier: Apache-2.0
// Streaming products with matrices in strips (strips.h). Lanes are rows; the input's values are
// broadcast. Scales are applied to the sums of groups, biases to the sums of the input over groups:
// sum(x * (s * q + b)) = s * sum(x * q) + b * sum(x).
#include "kernels/cpu/simd/strips.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

namespace {

// Tokens of a tile. Each has two sums a register of rows and their total in registers.
constexpr int kMaxTokens = kNumRegisters == 32 ? 8 : 4;

// Packed input: tokens [num_tokens, in_features], each value as much smaller as the weight's comes
// out too large; then sums over groups [num_tokens, num_groups].
int64_t input_floats(const WeightRows& weight, int64_t num_tokens) {
  return num_tokens * (weight.in_features + weight.in_features / weight.group_size);
}

int64_t scratch_floats(const WeightRows&, int64_t num_tokens, int64_t num_features) {
  return num_tokens * round_up(num_features, kStripRows);
}

float sum_of(const float* x, int64_t count) {
  Floats total = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) total += load(x + i);
  float sum = horizontal_sum(total);
  for (; i < count; ++i) sum += x[i];
  return sum;
}

template <int Bits>
void scale_input(float* x, int64_t count) {
  for (int64_t chunk = 0; chunk < count; chunk += kChunkColumns) {
    for (int column = 0; column < kChunkColumns; ++column)
      x[chunk + column] *= input_scale<Bits>(column);
  }
}

void pack(const WeightRows& weight, const TokenRows& tokens, float* input) {
  const int64_t num_groups = weight.in_features / weight.group_size;
  float* group_sums = input + tokens.num_tokens * weight.in_features;
  with_elements(tokens.elements, tokens.type, [&](const auto* x) {
    for (int64_t token = 0; token < tokens.num_tokens; ++token, x += tokens.stride) {
      float* packed = input + token * weight.in_features;
      to_float32(x, weight.in_features, packed);
      for (int64_t group = 0; group < num_groups; ++group)
        *group_sums++ = sum_of(packed + group * weight.group_size, weight.group_size);
      with_bits(weight.bits, [&]<int Bits>() { scale_input<Bits>(packed, weight.in_features); });
    }
  });
}

// The products of a strip, or of the part of it that `Registers` hold, with `Tokens` tokens.
template <typename Scale, int Bits>
struct StripTile {
  StripLayout layout;
  int64_t in_features;

  // strip: the first of its lanes' words; x, group_sums: the first token's. Sums go to
  // sums[token * sums_stride + row].
  template <int Registers, int Tokens>
  void run(const char* strip, int64_t first_lane, const float* x, const float* group_sums,
           float* sums, int64_t sums_stride) const {
    Floats totals[Registers][Tokens] = {};
    for (int64_t group = 0; group < layout.num_groups; ++group) {
      Floats partial[2][Registers][Tokens] = {};  // even and odd columns: shorter chains
      for (int64_t chunk = 0; chunk < layout.chunks_per_group; ++chunk) {
        add_chunk((const uint32_t*)strip + first_lane, x, partial);
        strip += layout.chunk_bytes;
        x += kChunkColumns;
      }
      const Scale* scales = (const Scale*)strip + first_lane;
      VLLM_METAL_UNROLL
      for (int r = 0; r < Registers; ++r) {
        const Floats scale = load(scales + r * kLanes);
        const Floats bias = load(scales + kStripRows + r * kLanes);
        VLLM_METAL_UNROLL
        for (int t = 0; t < Tokens; ++t) {
          totals[r][t] = fma(partial[0][r][t] + partial[1][r][t], scale, totals[r][t]);
          totals[r][t] = fma(group_sums[t * layout.num_groups + group], bias, totals[r][t]);
        }
      }
      strip += 2 * layout.scales_bytes;
    }
    VLLM_METAL_UNROLL
    for (int r = 0; r < Registers; ++r) {
      VLLM_METAL_UNROLL
      for (int t = 0; t < Tokens; ++t)
        store(sums + t * sums_stride + first_lane + r * kLanes, totals[r][t]);
    }
  }

  template <int Registers, int Tokens>
  VLLM_METAL_INLINE void add_chunk(const uint32_t* words, const float* x,
                                   Floats (&partial)[2][Registers][Tokens]) const {
#pragma GCC unroll 2
    for (int half = 0; half < kChunkColumns; half += 16) {
      VLLM_METAL_UNROLL
      for (int column = half; column < half + 16; ++column) {
        VLLM_METAL_UNROLL
        for (int r = 0; r < Registers; ++r) {
          const Floats value = scaled_value_of<Bits>(words + r * kLanes, column);
          VLLM_METAL_UNROLL
          for (int t = 0; t < Tokens; ++t) {
            Floats& sum = partial[column % 2][r][t];
            sum = fma(x[t * in_features + column], value, sum);
          }
        }
      }
    }
  }

  // One strip by all tokens.
  void run_all(const char* strip, const float* x, const float* group_sums, int64_t num_tokens,
               float* sums, int64_t sums_stride) const {
    int64_t token = 0;
    while (token < num_tokens) {
      const int64_t rest = num_tokens - token;
      const int64_t count = rest < kMaxTokens ? rest : kMaxTokens;
      run_tokens<kMaxTokens>(count, strip, x + token * in_features,
                             group_sums + token * layout.num_groups, sums + token * sums_stride,
                             sums_stride);
      token += count;
    }
  }

  template <int Tokens>
  void run_tokens(int64_t count, const char* strip, const float* x, const float* group_sums,
                  float* sums, int64_t sums_stride) const {
    if (count < Tokens) {
      if constexpr (Tokens > 1)
        run_tokens<Tokens - 1>(count, strip, x, group_sums, sums, sums_stride);
    } else if constexpr (Tokens == 1) {
      run<kStripRows / kLanes, 1>(strip, 0, x, group_sums, sums, sums_stride);
    } else {
      for (int64_t lane = 0; lane < kStripRows; lane += kLanes)
        run<1, Tokens>(strip, lane, x, group_sums, sums, sums_stride);
    }
  }
};

// Rows [begin, end); `begin` is a multiple of kStripRows.
void run(const WeightRows& weight, const float* input, int64_t num_tokens, int64_t begin,
         int64_t end, const LinearOutput& output, float* scratch) {
  const StripLayout layout(weight);
  const float* group_sums = input + num_tokens * weight.in_features;
  const int64_t stride = round_up(end - begin, kStripRows);
  with_elements(weight.elements, weight.type, [&]<typename Scale>(const Scale*) {
    with_bits(weight.bits, [&]<int Bits>() {
      const StripTile<Scale, Bits> tile{layout, weight.in_features};
      for (int64_t row = begin; row < end; row += kStripRows) {
        const char* strip = (const char*)weight.elements + row / kStripRows * layout.strip_bytes;
        tile.run_all(strip, input, group_sums, num_tokens, scratch + (row - begin), stride);
      }
    });
  });
  for (int64_t token = 0; token < num_tokens; ++token)
    write_features(output, weight.out_features, token, begin, end - begin,
                   scratch + token * stride);
}

}  // namespace

const StreamingKernels strips_kernels = {input_floats, scratch_floats, pack, run};

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
