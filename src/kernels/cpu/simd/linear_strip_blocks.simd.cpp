// SPDX-License-Identifier: Apache-2.0
// Products of many tokens with matrices in strips (strips.h). Strips are dequantised to a panel
// once for all tokens of a block; rows are lanes, as they lie, and the input's values are
// broadcast:
//
//                    panel [steps, kBlockRows]
//                    | w[0][0..31] |
//                    | w[1][0..31] |
//   tokens           |     ...     |
//   | x x x ... |    tile [tokens, kBlockRows] of sums, in registers
//
// Each sum runs over the steps from first to last.
#include "kernels/cpu/simd/linear_parts.h"
#include "kernels/cpu/simd/strip_results.h"
#include "kernels/cpu/simd/strips.h"
#include "kernels/cpu/simd/vector.h"
#include "kernels/cpu/simd/weight_rows.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

namespace {

// A tile's sums, its weights and a value of the input are in registers.
constexpr int kTileRegisters = 2;
constexpr int kTileTokens = kNumRegisters == 32 ? 12 : 6;

constexpr int kTileRows = kTileRegisters * kLanes;
constexpr int kBlockRows = kTileRows > kStripRows ? kTileRows : kStripRows;

// A panel stays in the second cache.
constexpr int64_t kMaxSteps = 1024;

// Tokens that are packed together.
constexpr int64_t kPackedTokens = 16;

// ---- What a step is ----

// A column, in float32.
struct FloatPanel {
  typedef float Input;
  static constexpr int kColumns = 1;

  template <typename Function>
  static VLLM_METAL_INLINE Floats weights(const Function& column, int step) {
    return column(step);
  }
  static VLLM_METAL_INLINE Floats multiply_add(Input x, Floats weights, Floats sum) {
    return fma(x, weights, sum);
  }

  static void pack_token(const void* elements, ElementType type, int64_t offset, int64_t count,
                         Input* packed) {
    with_elements(elements, type, [&](const auto* x) { to_float32(x + offset, count, packed); });
  }
};

#if defined(__AVX512BF16__)
// Two columns, the weights rounded to bfloat16; for input of that type.
struct PairPanel {
  typedef uint32_t Input;
  static constexpr int kColumns = 2;

  template <typename Function>
  static VLLM_METAL_INLINE Floats weights(const Function& column, int step) {
    const __m512bh halves = _mm512_maskz_cvtne2ps_pbh(0xffffffffu, (__m512)column(2 * step + 1),
                                                      (__m512)column(2 * step));
    return (Floats)_mm512_maskz_permutexvar_epi16(0xffffffffu, interleaved(), (__m512i)halves);
  }
  static VLLM_METAL_INLINE Floats multiply_add(Input x, Floats weights, Floats sum) {
    return add_pair_products(as_words(weights), x, sum);
  }

  static void pack_token(const void* elements, ElementType, int64_t offset, int64_t count,
                         Input* packed) {
    __builtin_memcpy(packed, (const Bfloat16*)elements + offset, count * sizeof(Bfloat16));
  }

 private:
  // Element i of the lower half, then element i of the upper.
  static VLLM_METAL_INLINE __m512i interleaved() {
    return (__m512i)(Words{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} * 0x10001u +
                     0x100000u);
  }
};
#endif

// ---- The input ----

// Steps of a token in memory: rows that are an odd number of cache lines apart are spread over the
// cache's sets.
int64_t input_stride(int64_t num_steps) { return (num_steps + 15) / 16 / 2 * 32 + 16; }

template <typename Panel>
int64_t num_steps_of(const WeightRows& weight) {
  return weight.in_features / Panel::kColumns;
}

template <typename Panel>
int64_t input_floats(const WeightRows& weight, int64_t num_tokens) {
  return num_tokens * input_stride(num_steps_of<Panel>(weight));
}

template <typename Panel>
void pack(const WeightRows& weight, const TokenRows& tokens, int64_t begin, int64_t end,
          float* input) {
  const int64_t stride = input_stride(num_steps_of<Panel>(weight));
  const int64_t last = end * kPackedTokens;
  for (int64_t token = begin * kPackedTokens; token < last && token < tokens.num_tokens; ++token)
    Panel::pack_token(tokens.elements, tokens.type, token * tokens.stride, weight.in_features,
                      (typename Panel::Input*)input + token * stride);
}

// ---- The panel ----

// Steps [begin, end) of the rows of a strip, to panel[step * kBlockRows + row].
template <typename Panel, typename Scale, int Bits>
void fill_panel(const WeightRows& weight, int64_t strip, int64_t begin, int64_t end, float* panel) {
  constexpr int kSteps = kChunkColumns / Panel::kColumns;
  const StripLayout layout(weight);
  const char* groups = (const char*)weight.elements + strip * layout.strip_bytes;
  for (int64_t step = begin; step < end; step += kSteps, panel += kSteps * kBlockRows) {
    const int64_t column = step * Panel::kColumns;
    const int64_t chunk = column % weight.group_size / kChunkColumns;
    const char* group = groups + column / weight.group_size * layout.group_bytes;
    const uint32_t* words = (const uint32_t*)(group + chunk * layout.chunk_bytes);
    const Scale* scales = (const Scale*)(group + layout.chunks_per_group * layout.chunk_bytes);
    for (int lane = 0; lane < kStripRows; lane += kLanes) {
      const Floats scale = load(scales + lane), bias = load(scales + kStripRows + lane);
      const auto weights_of = [&](int i) __attribute__((always_inline)) {
        return fma(to_floats(value_of<Bits>(words + lane, i)), scale, bias);
      };
#pragma GCC unroll 32
      for (int i = 0; i < kSteps; ++i)
        store(panel + i * kBlockRows + lane, Panel::weights(weights_of, i));
    }
  }
}

// Rows of a block beyond the matrix's last strip are left as they are.
template <typename Panel>
void fill_panel(const WeightRows& weight, int64_t row, int64_t row_end, int64_t begin, int64_t end,
                float* panel) {
  with_elements(weight.elements, weight.type, [&]<typename Scale>(const Scale*) {
    with_bits(weight.bits, [&]<int Bits>() {
      for (int64_t r = row; r < row_end; r += kStripRows)
        fill_panel<Panel, Scale, Bits>(weight, r / kStripRows, begin, end, panel + (r - row));
    });
  });
}

// ---- Sums ----

// Adds the products of `Registers` registers of rows with `Tokens` tokens to the sums
// [Tokens, kBlockRows], or starts them. Strides are in steps.
template <typename Panel, int Registers, int Tokens>
void sum_tile(const float* panel, int64_t num_steps, const typename Panel::Input* x,
              int64_t x_stride, bool start, float* sums) {
  Floats totals[Tokens][Registers];
  VLLM_METAL_UNROLL
  for (int t = 0; t < Tokens; ++t) {
    VLLM_METAL_UNROLL
    for (int r = 0; r < Registers; ++r)
      totals[t][r] = start ? Floats{} : load(sums + t * kBlockRows + r * kLanes);
  }
  // Few pointers for many tokens: an address takes one of them and up to twice the stride.
  const typename Panel::Input* bases[(Tokens + 2) / 3];
  VLLM_METAL_UNROLL
  for (int t = 0; t < Tokens; t += 3) bases[t / 3] = x + t * x_stride;
  for (int64_t step = 0; step < num_steps; ++step, panel += kBlockRows) {
    Floats weights[Registers];
    VLLM_METAL_UNROLL
    for (int r = 0; r < Registers; ++r) weights[r] = load(panel + r * kLanes);
    VLLM_METAL_UNROLL
    for (int t = 0; t < Tokens; ++t) {
      const typename Panel::Input value = bases[t / 3][t % 3 * x_stride];
      VLLM_METAL_UNROLL
      for (int r = 0; r < Registers; ++r)
        totals[t][r] = Panel::multiply_add(value, weights[r], totals[t][r]);
    }
    VLLM_METAL_UNROLL
    for (int t = 0; t < Tokens; t += 3) ++bases[t / 3];
  }
  VLLM_METAL_UNROLL
  for (int t = 0; t < Tokens; ++t) {
    VLLM_METAL_UNROLL
    for (int r = 0; r < Registers; ++r) store(sums + t * kBlockRows + r * kLanes, totals[t][r]);
  }
}

// `num_rows` rows by `count` tokens, at most `Tokens`.
template <typename Panel, int Tokens>
__attribute__((noinline)) void sum_tokens(int64_t count, int64_t num_rows, const float* panel,
                                          int64_t num_steps, const typename Panel::Input* x,
                                          int64_t x_stride, bool start, float* sums) {
  if (count < Tokens) {
    if constexpr (Tokens > 1)
      sum_tokens<Panel, Tokens - 1>(count, num_rows, panel, num_steps, x, x_stride, start, sums);
    return;
  }
  int64_t row = 0;
  for (; row + kLanes < num_rows; row += kTileRows)
    sum_tile<Panel, kTileRegisters, Tokens>(panel + row, num_steps, x, x_stride, start, sums + row);
  if (row < num_rows)
    sum_tile<Panel, 1, Tokens>(panel + row, num_steps, x, x_stride, start, sums + row);
}

// ---- The table ----

int64_t scratch_floats(int64_t num_tokens) { return kBlockRows * (kMaxSteps + num_tokens + 1); }

template <typename Panel>
void run(const WeightRows& weight, const float* input, int64_t num_tokens, const LinearBlock& block,
         const LinearOutput& output, float* scratch) {
  const int64_t num_steps = num_steps_of<Panel>(weight);
  const int64_t x_stride = input_stride(num_steps);
  const int64_t num_rows = block.end - block.begin;
  const auto* x = (const typename Panel::Input*)input;
  float* panel = scratch;
  float* sums = panel + kBlockRows * kMaxSteps;
  float* bias = sums + kBlockRows * (block.token_end - block.token_begin);
  read_bias(output, block.begin, block.end, bias);
  for (int64_t begin = 0; begin < num_steps; begin += kMaxSteps) {
    const int64_t end = num_steps - begin < kMaxSteps ? num_steps : begin + kMaxSteps;
    fill_panel<Panel>(weight, block.begin, block.end, begin, end, panel);
    float* tile = sums;
    for (int64_t token = block.token_begin; token < block.token_end; token += kTileTokens) {
      const int64_t rest = block.token_end - token;
      const int64_t count = rest < kTileTokens ? rest : kTileTokens;
      sum_tokens<Panel, kTileTokens>(count, num_rows, panel, end - begin,
                                     x + token * x_stride + begin, x_stride, begin == 0, tile);
      if (end == num_steps) {
        with_elements(output.elements, output.type, [&]<typename Element>(const Element*) {
          write_tile(tile, kBlockRows, bias, count, num_rows,
                     (Element*)output.elements + token * weight.out_features + block.begin,
                     weight.out_features);
        });
      }
      tile += count * kBlockRows;
    }
  }
}

template <typename Panel>
constexpr BlockedKernels kKernels = {kPackedTokens,  kBlockRows,  input_floats<Panel>,
                                     scratch_floats, pack<Panel>, run<Panel>};

}  // namespace

const BlockedKernels& strip_blocks_kernels(ElementType activations) {
#if defined(__AVX512BF16__)
  if (activations == ElementType::kBfloat16) return kKernels<PairPanel>;
#endif
  return kKernels<FloatPanel>;
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
