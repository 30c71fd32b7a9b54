// SPDX-License-Identifier: Apache-2.0
// Products of many tokens with weights by rows. Tokens lie along the lanes and weights are
// broadcast, so that rows of the weight are used as they are stored and only the activations are
// transposed:
//
//                      panel of tokens [steps, kPanelTokens], packed once
//                      | x[0..31][0] |
//                      | x[0..31][1] |
//   rows of float32    |     ...     |
//   | w w w ... |  ->  tile [kTileRows, kPanelTokens] of sums, in registers
//
// A block of rows is converted to float32 a depth at a time, then used for every panel. Each
// sum runs over the steps, which are columns of in_features, from first to last.
#include "kernels/cpu/simd/linear_parts.h"
#include "kernels/cpu/simd/transpose.h"
#include "kernels/cpu/simd/vector.h"
#include "kernels/cpu/simd/weight_rows.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

namespace {

constexpr int kTileRows = kNumRegisters == 32 ? 12 : 6;
constexpr int kPanelTokens = 2 * kLanes;
constexpr int kBlockRows = 48;  // a multiple of kTileRows and of kLanes
static_assert(kBlockRows % kTileRows == 0 && kBlockRows % kLanes == 0);

// Converted weights of a tile and of one panel stay in the first and second cache. The stride
// is odd in cache lines, to spread rows over the cache's sets.
constexpr int64_t kMaxDepth = 640;
constexpr int64_t kWeightsStride = kMaxDepth + 16;

// Of eight columns and more: what read_columns begins at.
constexpr int64_t kDepthUnit = kLanes > 8 ? kLanes : 8;
static_assert(kMaxDepth % kDepthUnit == 0);

struct Depths {
  explicit Depths(int64_t num_steps)
      : count((num_steps + kMaxDepth - 1) / kMaxDepth),
        size(count == 0 ? 0 : round_up((num_steps + count - 1) / count, kDepthUnit)) {}
  int64_t count;
  int64_t size;  // of each but the last
};

int64_t padded_tokens(int64_t num_tokens) { return round_up(num_tokens, kLanes); }

int64_t sums_stride(int64_t num_tokens) { return padded_tokens(num_tokens) + 16; }

// ---- What a step is ----

// Panels and blocks are made of 32-bit elements, one a step. A column in float32, whatever is
// multiplied:
struct FloatElements {
  static int64_t count(const WeightRows& weight) { return weight.in_features; }

  // f(source): source(token, step, width) are `width` (up to kLanes) elements of a token.
  template <typename Function>
  static void with_source(const TokenRows& tokens, const Function& f) {
    with_elements(tokens.elements, tokens.type, [&](const auto* x) {
      f([x, stride = tokens.stride](int64_t token, int64_t step, int64_t width)
            __attribute__((always_inline)) {
              const auto* source = x + token * stride + step;
              return width == kLanes ? load(source) : load_first(source, width);
            });
    });
  }

  static void read_row(const WeightRows& weight, int64_t row, int64_t begin, int64_t end,
                       float* out) {
    read_columns(weight, row, begin, end, out);
  }

  static VLLM_METAL_INLINE Floats multiply_add(float weight, Floats x, Floats total) {
    return fma(weight, x, total);
  }
};

#if defined(__AVX512BF16__)
// Two columns of bfloat16, as they lie.
struct PairElements {
  static bool fits(const WeightRows& weight, ElementType activations) {
    return weight.bits == 0 && weight.type == ElementType::kBfloat16 &&
           activations == ElementType::kBfloat16 && weight.in_features % 2 == 0;
  }

  static int64_t count(const WeightRows& weight) { return weight.in_features / 2; }

  template <typename Function>
  static void with_source(const TokenRows& tokens, const Function& f) {
    f([x = (const Bfloat16*)tokens.elements, stride = tokens.stride](
          int64_t token, int64_t step, int64_t width) __attribute__((always_inline)) {
      const float* source = (const float*)(x + token * stride + 2 * step);
      return width == kLanes ? load_bits<Floats>(source) : load_first(source, width);
    });
  }

  static void read_row(const WeightRows& weight, int64_t row, int64_t begin, int64_t end,
                       float* out) {
    const Bfloat16* elements = (const Bfloat16*)weight.elements + row * weight.stride + 2 * begin;
    __builtin_memcpy(out, elements, (end - begin) * sizeof(float));
  }

  static VLLM_METAL_INLINE Floats multiply_add(float weight, Floats x, Floats total) {
    uint32_t pair;
    __builtin_memcpy(&pair, &weight, sizeof(pair));
    return add_pair_products(as_words(x), pair, total);
  }
};
#endif

// ---- Packing ----

// Tokens [token, token + kLanes) into panel[step * panel_width + lane], zero for those beyond
// `num_tokens`.
template <typename Source>
void pack_lanes(const Source& source, int64_t token, int64_t num_tokens, int64_t num_steps,
                int64_t panel_width, float* panel) {
  for (int64_t step = 0; step < num_steps; step += kLanes) {
    const int64_t width = num_steps - step < kLanes ? num_steps - step : kLanes;
    Floats rows[kLanes];
    VLLM_METAL_UNROLL
    for (int i = 0; i < kLanes; ++i)
      rows[i] = token + i < num_tokens ? source(token + i, step, width) : Floats{};
    transpose(rows);
    for (int64_t i = 0; i < width; ++i) store(panel + (step + i) * panel_width, rows[i]);
  }
}

// Panels lie one after the other; the last may be of one register only.
int64_t panel_width(int64_t num_tokens, int64_t panel) {
  const int64_t rest = padded_tokens(num_tokens) - panel * kPanelTokens;
  return rest < kPanelTokens ? rest : kPanelTokens;
}

template <typename Steps>
void pack(const WeightRows& weight, const TokenRows& tokens, int64_t begin, int64_t end,
          float* input) {
  const int64_t num_steps = Steps::count(weight);
  Steps::with_source(tokens, [&](const auto& source) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t width = panel_width(tokens.num_tokens, panel);
      float* packed = input + panel * kPanelTokens * num_steps;
      for (int64_t lanes = 0; lanes < width; lanes += kLanes)
        pack_lanes(source, panel * kPanelTokens + lanes, tokens.num_tokens, num_steps, width,
                   packed + lanes);
    }
  });
}

// ---- Sums ----

// Adds the products of kTileRows weight rows [kTileRows, depth] with a panel [depth, Registers *
// kLanes] to the sums, or starts them.
template <typename Steps, int Registers>
void sum_tile(const float* weights, const float* panel, int64_t depth, bool start, float* sums,
              int64_t stride) {
  Floats totals[kTileRows][Registers];
  VLLM_METAL_UNROLL
  for (int r = 0; r < kTileRows; ++r) {
    VLLM_METAL_UNROLL
    for (int i = 0; i < Registers; ++i) {
      totals[r][i] = start ? Floats{} : load(sums + r * stride + i * kLanes);
    }
  }
  for (int64_t step = 0; step < depth; ++step) {
    Floats x[Registers];
    VLLM_METAL_UNROLL
    for (int i = 0; i < Registers; ++i) x[i] = load(panel + i * kLanes);
    VLLM_METAL_UNROLL
    for (int r = 0; r < kTileRows; ++r) {
      const float weight = weights[r * kWeightsStride];
      VLLM_METAL_UNROLL
      for (int i = 0; i < Registers; ++i)
        totals[r][i] = Steps::multiply_add(weight, x[i], totals[r][i]);
    }
    panel += Registers * kLanes;
    ++weights;
  }
  VLLM_METAL_UNROLL
  for (int r = 0; r < kTileRows; ++r) {
    VLLM_METAL_UNROLL
    for (int i = 0; i < Registers; ++i) store(sums + r * stride + i * kLanes, totals[r][i]);
  }
}

// Steps [begin, end). Rows of the block beyond the matrix are zero.
template <typename Steps>
void read_block(const WeightRows& weight, int64_t row, int64_t num_rows, int64_t begin, int64_t end,
                float* weights) {
  for (int64_t r = 0; r < num_rows; ++r)
    Steps::read_row(weight, row + r, begin, end, weights + r * kWeightsStride);
  for (int64_t r = num_rows; r < round_up(num_rows, kTileRows); ++r) {
    for (int64_t i = 0; i < end - begin; ++i) weights[r * kWeightsStride + i] = 0.0f;
  }
}

// One panel by one block of weights.
template <typename Steps, int Registers>
void sum_panel(const float* weights, int64_t num_rows, const float* panel, int64_t depth,
               bool start, float* sums, int64_t stride) {
  for (int64_t r = 0; r < num_rows; r += kTileRows) {
    sum_tile<Steps, Registers>(weights + r * kWeightsStride, panel, depth, start, sums + r * stride,
                               stride);
  }
}

// ---- Result ----

// Turns sums [num_rows, tokens] into rows of the result, kLanes tokens at a time.
void write_block(const WeightRows& weight, const LinearOutput& output, const LinearBlock& block,
                 const float* sums, int64_t stride) {
  float values[kLanes][kBlockRows];
  for (int64_t token = block.token_begin; token < block.token_end; token += kLanes) {
    for (int64_t r = 0; r < block.end - block.begin; r += kLanes) {
      Floats rows[kLanes];
      VLLM_METAL_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        rows[i] = load(sums + (r + i) * stride + (token - block.token_begin));
      }
      transpose(rows);
      VLLM_METAL_UNROLL
      for (int i = 0; i < kLanes; ++i) store(&values[i][r], rows[i]);
    }
    for (int64_t i = 0; i < kLanes && token + i < block.token_end; ++i) {
      write_features(output, weight.out_features, token + i, block.begin, block.end - block.begin,
                     values[i]);
    }
  }
}

// ---- The table ----

template <typename Steps>
int64_t input_floats(const WeightRows& weight, int64_t num_tokens) {
  return padded_tokens(num_tokens) * Steps::count(weight);
}

int64_t scratch_floats(int64_t num_tokens) {
  return kBlockRows * (kWeightsStride + sums_stride(num_tokens));
}

template <typename Steps>
void run(const WeightRows& weight, const float* input, int64_t num_tokens, const LinearBlock& block,
         const LinearOutput& output, float* scratch) {
  const int64_t num_rows = block.end - block.begin;
  const int64_t stride = sums_stride(block.token_end - block.token_begin);
  float* weights = scratch;
  float* sums = scratch + kBlockRows * kWeightsStride;
  const int64_t num_steps = Steps::count(weight);
  const Depths depths(num_steps);
  for (int64_t begin = 0; begin < num_steps; begin += depths.size) {
    const int64_t rest = num_steps - begin;
    const int64_t depth = rest < depths.size ? rest : depths.size;
    read_block<Steps>(weight, block.begin, num_rows, begin, begin + depth, weights);
    for (int64_t token = block.token_begin; token < block.token_end; token += kPanelTokens) {
      const int64_t width = panel_width(num_tokens, token / kPanelTokens);
      const float* panel = input + token * num_steps + begin * width;
      const auto sum = width == kPanelTokens ? sum_panel<Steps, 2> : sum_panel<Steps, 1>;
      sum(weights, num_rows, panel, depth, begin == 0, sums + (token - block.token_begin), stride);
    }
  }
  write_block(weight, output, block, sums, stride);
}

template <typename Steps>
constexpr BlockedKernels kKernels = {kPanelTokens,   kBlockRows,  input_floats<Steps>,
                                     scratch_floats, pack<Steps>, run<Steps>};

}  // namespace

const BlockedKernels& row_blocks_kernels(const WeightRows& weight, ElementType activations) {
#if defined(__AVX512BF16__)
  if (PairElements::fits(weight, activations)) return kKernels<PairElements>;
#endif
  return kKernels<FloatElements>;
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
