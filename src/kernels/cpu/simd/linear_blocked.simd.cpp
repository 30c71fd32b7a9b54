// SPDX-License-Identifier: Apache-2.0
// Products with many tokens. Tokens lie along the lanes and weights are broadcast, so that rows of
// the weight are used as they are stored and only the activations are transposed:
//
//                      panel of tokens [in_features, kPanelTokens], packed once
//                      | x[0..31][0] |
//                      | x[0..31][1] |
//   rows of float32    |     ...     |
//   | w w w ... |  ->  tile [kTileRows, kPanelTokens] of sums, in registers
//
// A block of rows is converted to float32 a depth at a time, then used for every panel. Each
// sum runs over in_features from first to last.
#include "kernels/cpu/simd/linear_parts.h"
#include "kernels/cpu/simd/strips.h"
#include "kernels/cpu/simd/transpose.h"
#include "kernels/cpu/simd/vector.h"
#include "kernels/cpu/simd/weight_rows.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

namespace {

constexpr int kTileRows = kNumRegisters == 32 ? 12 : 6;
constexpr int kPanelTokens = 2 * kLanes;
constexpr int kBlockRows = 48;  // a multiple of kTileRows, of kLanes and of kStripRows
static_assert(kBlockRows % kTileRows == 0 && kBlockRows % kLanes == 0 &&
              kBlockRows % kStripRows == 0);

// Converted weights of a tile and of one panel stay in the first and second cache. The stride
// is odd in cache lines, to spread rows over the cache's sets.
constexpr int64_t kMaxDepth = 640;
constexpr int64_t kWeightsStride = kMaxDepth + 16;

struct Depths {
  explicit Depths(int64_t in_features)
      : count((in_features + kMaxDepth - 1) / kMaxDepth),
        size(count == 0 ? 0 : round_up((in_features + count - 1) / count, kChunkColumns)) {}
  int64_t count;
  int64_t size;  // of each but the last
};

int64_t padded_tokens(int64_t num_tokens) { return round_up(num_tokens, kLanes); }

int64_t sums_stride(int64_t num_tokens) { return padded_tokens(num_tokens) + 16; }

// ---- Packing ----

// Up to kLanes tokens into panel[column * panel_width + lane], zero for those beyond `count`.
template <typename Element>
void pack_lanes(const Element* x, int64_t stride, int64_t count, int64_t in_features,
                int64_t panel_width, float* panel) {
  for (int64_t column = 0; column < in_features; column += kLanes) {
    const int64_t width = in_features - column < kLanes ? in_features - column : kLanes;
    Floats rows[kLanes];
    VLLM_METAL_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      if (i >= count) {
        rows[i] = Floats{};
      } else if (width == kLanes) {
        rows[i] = load(x + i * stride + column);
      } else {
        rows[i] = load_first(x + i * stride + column, width);
      }
    }
    transpose(rows);
    for (int64_t i = 0; i < width; ++i) store(panel + (column + i) * panel_width, rows[i]);
  }
}

// Panels lie one after the other; the last may be of one register only.
int64_t panel_width(int64_t num_tokens, int64_t panel) {
  const int64_t rest = padded_tokens(num_tokens) - panel * kPanelTokens;
  return rest < kPanelTokens ? rest : kPanelTokens;
}

void pack(const WeightRows& weight, const TokenRows& tokens, int64_t begin, int64_t end,
          float* input) {
  with_elements(tokens.elements, tokens.type, [&](const auto* x) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t width = panel_width(tokens.num_tokens, panel);
      float* packed = input + panel * kPanelTokens * weight.in_features;
      for (int64_t lanes = 0; lanes < width; lanes += kLanes) {
        const int64_t token = panel * kPanelTokens + lanes;
        pack_lanes(x + token * tokens.stride, tokens.stride, tokens.num_tokens - token,
                   weight.in_features, width, packed + lanes);
      }
    }
  });
}

// ---- Sums ----

// Adds the products of kTileRows weight rows [kTileRows, depth] with a panel [depth, Registers *
// kLanes] to the sums, or starts them.
template <int Registers>
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
  for (int64_t column = 0; column < depth; ++column) {
    Floats x[Registers];
    VLLM_METAL_UNROLL
    for (int i = 0; i < Registers; ++i) x[i] = load(panel + i * kLanes);
    VLLM_METAL_UNROLL
    for (int r = 0; r < kTileRows; ++r) {
      const float weight = weights[r * kWeightsStride];
      VLLM_METAL_UNROLL
      for (int i = 0; i < Registers; ++i) totals[r][i] = fma(weight, x[i], totals[r][i]);
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

// Rows of the block beyond the matrix are zero.
void read_block(const WeightRows& weight, int64_t row, int64_t num_rows, int64_t begin, int64_t end,
                float* weights) {
  if (weight.in_strips) {  // whose absent rows are zero
    for (int64_t r = 0; r < num_rows; r += kStripRows) {
      read_strip(weight, (row + r) / kStripRows, begin, end, weights + r * kWeightsStride,
                 kWeightsStride);
    }
    num_rows = round_up(num_rows, kStripRows);
  } else {
    for (int64_t r = 0; r < num_rows; ++r)
      read_columns(weight, row + r, begin, end, weights + r * kWeightsStride);
  }
  for (int64_t r = num_rows; r < round_up(num_rows, kTileRows); ++r) {
    for (int64_t i = 0; i < end - begin; ++i) weights[r * kWeightsStride + i] = 0.0f;
  }
}

// One panel by one block of weights.
template <int Registers>
void sum_panel(const float* weights, int64_t num_rows, const float* panel, int64_t depth,
               bool start, float* sums, int64_t stride) {
  for (int64_t r = 0; r < num_rows; r += kTileRows) {
    sum_tile<Registers>(weights + r * kWeightsStride, panel, depth, start, sums + r * stride,
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

int64_t input_floats(const WeightRows& weight, int64_t num_tokens) {
  return padded_tokens(num_tokens) * weight.in_features;
}

int64_t scratch_floats(int64_t num_tokens) {
  return kBlockRows * (kWeightsStride + sums_stride(num_tokens));
}

void run(const WeightRows& weight, const float* input, int64_t num_tokens, const LinearBlock& block,
         const LinearOutput& output, float* scratch) {
  const int64_t num_rows = block.end - block.begin;
  const int64_t stride = sums_stride(block.token_end - block.token_begin);
  float* weights = scratch;
  float* sums = scratch + kBlockRows * kWeightsStride;
  const Depths depths(weight.in_features);
  for (int64_t begin = 0; begin < weight.in_features; begin += depths.size) {
    const int64_t rest = weight.in_features - begin;
    const int64_t depth = rest < depths.size ? rest : depths.size;
    read_block(weight, block.begin, num_rows, begin, begin + depth, weights);
    for (int64_t token = block.token_begin; token < block.token_end; token += kPanelTokens) {
      const int64_t width = panel_width(num_tokens, token / kPanelTokens);
      const float* panel = input + token * weight.in_features + begin * width;
      const auto sum = width == kPanelTokens ? sum_panel<2> : sum_panel<1>;
      sum(weights, num_rows, panel, depth, begin == 0, sums + (token - block.token_begin), stride);
    }
  }
  write_block(weight, output, block, sums, stride);
}

}  // namespace

const BlockedKernels blocked_kernels = {kPanelTokens,   kBlockRows, input_floats,
                                        scratch_floats, pack,       run};

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
