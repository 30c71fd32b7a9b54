// SPDX-License-Identifier: Apache-2.0
// Streaming products with dense weights, and with quantised ones that have no faster way: those
// are turned into float32 rows first.
#include "kernels/cpu/simd/streaming.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

namespace {

// Dequantised rows at a time: a multiple of every tile's rows that stays in the first cache.
constexpr int64_t kDequantizedRows = 4;

// Sums rows of elements, as they lie, with packed tokens.
template <typename Element>
struct RowsTile {
  const Element* rows;
  int64_t row_stride;
  int64_t in_features;
  const float* input;  // packed, zero beyond in_features
  int64_t token_floats;
  float* sums;  // [num_tokens, sums_stride]
  int64_t sums_stride;

  template <int Rows, int Tokens>
  void run(int64_t row, int64_t token) const {
    const Element* weights = rows + row * row_stride;
    const float* x = input + token * token_floats;
    Floats totals[Rows][Tokens] = {};
    const auto step = [&](const auto& load_weights) __attribute__((always_inline)) {
      Floats weight[Rows];
      VLLM_METAL_UNROLL
      for (int r = 0; r < Rows; ++r) {
        weight[r] = load_weights(weights + r * row_stride);
        prefetch_ahead(weights + r * row_stride);
      }
      VLLM_METAL_UNROLL
      for (int t = 0; t < Tokens; ++t) {
        const Floats value = load(x + t * kLanes);
        VLLM_METAL_UNROLL
        for (int r = 0; r < Rows; ++r) totals[r][t] = fma(weight[r], value, totals[r][t]);
      }
      weights += kLanes;
      x += Tokens * kLanes;
    };
    const int64_t whole = in_features / kLanes;
    for (int64_t i = 0; i < whole; ++i) {
      step([](const Element* source) { return load(source); });
    }
    if (const int64_t rest = in_features - whole * kLanes; rest > 0) {
      step([rest](const Element* source) { return load_first(source, rest); });
    }
    VLLM_METAL_UNROLL
    for (int t = 0; t < Tokens; ++t) {
      VLLM_METAL_UNROLL
      for (int r = 0; r < Rows; ++r) {
        sums[(token + t) * sums_stride + row + r] = horizontal_sum(totals[r][t]);
      }
    }
  }
};

int64_t padded_features(const WeightRows& weight) { return round_up(weight.in_features, kLanes); }

int64_t input_floats(const WeightRows& weight, int64_t num_tokens) {
  return num_tokens * padded_features(weight);
}

int64_t dequantized_floats(const WeightRows& weight) {
  return weight.bits == 0 ? 0 : kDequantizedRows * padded_features(weight);
}

int64_t scratch_floats(const WeightRows& weight, int64_t num_tokens, int64_t num_features) {
  return num_tokens * num_features + dequantized_floats(weight);
}

void pack(const WeightRows& weight, const TokenRows& tokens, int64_t begin, int64_t end,
          float* input) {
  with_elements(tokens.elements, tokens.type, [&](const auto* x) {
    x += begin * tokens.stride;
    for (int64_t token = begin; token < end; ++token, x += tokens.stride) {
      const PackedToken place(token, tokens.num_tokens, padded_features(weight));
      float* packed = input + place.offset;
      int64_t i = 0;
      for (; i + kLanes <= weight.in_features; i += kLanes, packed += place.step) {
        store(packed, load(x + i));
      }
      if (i < weight.in_features) store(packed, load_first(x + i, weight.in_features - i));
    }
  });
}

// Rows [begin, end) to sums [num_tokens, end - begin].
void sum_dequantized(const WeightRows& weight, const float* input, int64_t num_tokens,
                     int64_t begin, int64_t end, float* sums, float* dequantized) {
  const int64_t stride = padded_features(weight);
  for (int64_t row = begin; row < end; row += kDequantizedRows) {
    const int64_t count = end - row < kDequantizedRows ? end - row : kDequantizedRows;
    for (int64_t r = 0; r < count; ++r) {
      read_columns(weight, row + r, 0, weight.in_features, dequantized + r * stride);
    }
    const RowsTile<float> tile{.rows = dequantized,
                               .row_stride = stride,
                               .in_features = weight.in_features,
                               .input = input,
                               .token_floats = stride,
                               .sums = sums + (row - begin),
                               .sums_stride = end - begin};
    cover(tile, num_tokens, 0, count);
  }
}

void run(const WeightRows& weight, const float* input, int64_t num_tokens, int64_t begin,
         int64_t end, const LinearOutput& output, float* scratch) {
  float* sums = scratch;
  if (weight.bits != 0) {
    sum_dequantized(weight, input, num_tokens, begin, end, sums,
                    scratch + num_tokens * (end - begin));
  } else {
    with_elements(weight.elements, weight.type, [&]<typename Element>(const Element* elements) {
      const RowsTile<Element> tile{.rows = elements + begin * weight.stride,
                                   .row_stride = weight.stride,
                                   .in_features = weight.in_features,
                                   .input = input,
                                   .token_floats = padded_features(weight),
                                   .sums = sums,
                                   .sums_stride = end - begin};
      cover(tile, num_tokens, 0, end - begin);
    });
  }
  for (int64_t token = 0; token < num_tokens; ++token) {
    write_features(output, weight.out_features, token, begin, end - begin,
                   sums + token * (end - begin));
  }
}

}  // namespace

const StreamingKernels rows_kernels = {input_floats, scratch_floats, pack, run,
                                       kMaxStreamingTokens};

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
