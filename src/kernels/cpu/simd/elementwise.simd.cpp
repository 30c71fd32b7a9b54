// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/simd/elementwise.h"

#include "kernels/cpu/simd/vector.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

namespace {

// Calls `whole(i)` for each full register of a row and `part(i, count)` for what is left.
template <typename Whole, typename Part>
VLLM_METAL_INLINE void for_each_register(int64_t width, const Whole& whole, const Part& part) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) whole(i);
  if (i < width) part(i, width - i);
}

// Written as float32, read back rounded: what follows sees the sum that the caller gets.
template <typename Element>
void add_row(const Element* x, const Element* residual, Element* sum, int64_t width) {
  for_each_register(
      width, [&](int64_t i) { store(sum + i, load(x + i) + load(residual + i)); },
      [&](int64_t i, int64_t count) {
        const Floats added = load_first(x + i, count) + load_first(residual + i, count);
        store_first(sum + i, added, count);
      });
}

template <typename Element>
float sum_of_squares(const Element* x, int64_t width) {
  constexpr int kChains = 4;  // independent sums hide the latency of the additions
  Floats sums[kChains] = {};
  int64_t i = 0;
  for (; i + kChains * kLanes <= width; i += kChains * kLanes) {
    for (int chain = 0; chain < kChains; ++chain) {
      const Floats value = load(x + i + chain * kLanes);
      sums[chain] = fma(value, value, sums[chain]);
    }
  }
  for_each_register(
      width - i,
      [&](int64_t j) {
        const Floats value = load(x + i + j);
        sums[0] = fma(value, value, sums[0]);
      },
      [&](int64_t j, int64_t count) {
        const Floats value = load_first(x + i + j, count);
        sums[0] = fma(value, value, sums[0]);
      });
  return horizontal_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <typename Element>
void rms_norm_row(const Element* x, const Element* weight, Element* normalized, int64_t width,
                  float eps) {
  const float mean = sum_of_squares(x, width) / (float)width;
  const Floats scale = broadcast(1.0f / __builtin_sqrtf(mean + eps));
  for_each_register(
      width, [&](int64_t i) { store(normalized + i, load(x + i) * scale * load(weight + i)); },
      [&](int64_t i, int64_t count) {
        const Floats value = load_first(x + i, count) * scale * load_first(weight + i, count);
        store_first(normalized + i, value, count);
      });
}

template <typename Element>
void rms_norm_rows(const RmsNormRows& rows, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const Element* x = (const Element*)rows.x + row * rows.x_stride;
    if (rows.residual != nullptr) {
      const Element* residual = (const Element*)rows.residual + row * rows.residual_stride;
      Element* sum = (Element*)rows.sum + row * rows.width;
      add_row(x, residual, sum, rows.width);
      x = sum;
    }
    rms_norm_row(x, (const Element*)rows.weight, (Element*)rows.normalized + row * rows.width,
                 rows.width, rows.eps);
  }
}

VLLM_METAL_INLINE Floats silu(Floats x) { return x / (1.0f + exp(-x)); }

template <typename Element>
void silu_and_mul_rows(const SiluAndMulRows& rows, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const Element* gate = (const Element*)rows.gate_up + row * rows.stride;
    const Element* up = gate + rows.width;
    Element* out = (Element*)rows.out + row * rows.width;
    for_each_register(
        rows.width, [&](int64_t i) { store(out + i, silu(load(gate + i)) * load(up + i)); },
        [&](int64_t i, int64_t count) {
          const Floats value = silu(load_first(gate + i, count)) * load_first(up + i, count);
          store_first(out + i, value, count);
        });
  }
}

// Turns the pairs (i, i + half) of `num_heads` heads by the token's angles; the rest of each head
// passes.
template <typename Element>
void rotate_heads(const Element* x, Element* out, int num_heads, int head_dim, const float* cos,
                  int half) {
  const float* sin = cos + half;
  for (int head = 0; head < num_heads; ++head, x += head_dim, out += head_dim) {
    for_each_register(
        half,
        [&](int64_t i) {
          const Floats a = load(x + i), b = load(x + half + i);
          const Floats c = load(cos + i), s = load(sin + i);
          store(out + i, a * c - b * s);
          store(out + half + i, b * c + a * s);
        },
        [&](int64_t i, int64_t count) {
          const Floats a = load_first(x + i, count), b = load_first(x + half + i, count);
          const Floats c = load_first(cos + i, count), s = load_first(sin + i, count);
          store_first(out + i, a * c - b * s, count);
          store_first(out + half + i, b * c + a * s, count);
        });
    __builtin_memcpy(out + 2 * half, x + 2 * half, (head_dim - 2 * half) * sizeof(Element));
  }
}

template <typename Element>
void split_rotary_tokens(const SplitRotaryTokens& tokens, int64_t begin, int64_t end) {
  const int64_t query_width = (int64_t)tokens.num_heads * tokens.head_dim;
  const int64_t key_width = (int64_t)tokens.num_kv_heads * tokens.head_dim;
  for (int64_t token = begin; token < end; ++token) {
    const Element* query = (const Element*)tokens.qkv + token * tokens.qkv_stride;
    const Element* key = query + query_width;
    const float* cos = tokens.cos_sin + token * tokens.cos_sin_stride;
    rotate_heads(query, (Element*)tokens.queries + token * query_width, tokens.num_heads,
                 tokens.head_dim, cos, tokens.rotary_dim / 2);
    const int64_t row = tokens.slots == nullptr ? token : tokens.slots[token];
    rotate_heads(key, (Element*)tokens.keys + row * key_width, tokens.num_kv_heads, tokens.head_dim,
                 cos, tokens.rotary_dim / 2);
    __builtin_memcpy((Element*)tokens.values + row * key_width, key + key_width,
                     key_width * sizeof(Element));
  }
}

// Calls the version of a kernel for the element type of its arguments.
#define VLLM_METAL_BY_ELEMENT(kernel, Arguments)                         \
  void kernel##_any(const Arguments& rows, int64_t begin, int64_t end) { \
    switch (rows.type) {                                                 \
      case ElementType::kFloat32:                                        \
        return kernel<float>(rows, begin, end);                          \
      case ElementType::kFloat16:                                        \
        return kernel<Float16>(rows, begin, end);                        \
      case ElementType::kBfloat16:                                       \
        return kernel<Bfloat16>(rows, begin, end);                       \
    }                                                                    \
  }
VLLM_METAL_BY_ELEMENT(rms_norm_rows, RmsNormRows)
VLLM_METAL_BY_ELEMENT(silu_and_mul_rows, SiluAndMulRows)
VLLM_METAL_BY_ELEMENT(split_rotary_tokens, SplitRotaryTokens)
#undef VLLM_METAL_BY_ELEMENT

}  // namespace

const ElementwiseKernels elementwise_kernels = {rms_norm_rows_any, silu_and_mul_rows_any,
                                                split_rotary_tokens_any};

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
