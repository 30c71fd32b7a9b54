// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/matmul.h"

#include <algorithm>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel_for.h"
#include "kernels/cpu/scratch.h"

namespace vllm_metal::cpu {

namespace {

// Tokens of a block: enough to pay for the conversion of its weights, few enough that its
// sums stay in the second cache. A multiple of every tokens_per_panel.
constexpr int64_t kBlockTokens = 512;

// Bytes of weights that a thread streams at a time: some microseconds of work.
constexpr int64_t kStreamedBytes = 16 * 1024;

// Tokens whose packing is worth a thread's waking.
constexpr int64_t kPackedTokens = 16;

constexpr int64_t kAlignment = 64 / sizeof(float);

float* align(float* memory) {
  const auto address = reinterpret_cast<uintptr_t>(memory);
  return memory + (64 - address % 64) % 64 / sizeof(float);
}

const LinearKernels& current_kernels() {
  return VLLM_METAL_KERNELS_OF(current_isa(), linear_kernels);
}

int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

int64_t item_size(ElementType type) { return type == ElementType::kFloat32 ? 4 : 2; }

int64_t row_bytes(const WeightRows& weight) {
  if (weight.bits == 0) return weight.in_features * item_size(weight.type);
  return weight.in_features * weight.bits / 8 +
         2 * weight.in_features / weight.group_size * item_size(weight.type);
}

// A multiple of the rows that kernels take together.
int64_t streamed_rows(const WeightRows& weight) {
  return std::clamp<int64_t>(kStreamedBytes / row_bytes(weight) / 32 * 32, 32, 512);
}

}  // namespace

Matmul::Matmul(const WeightRows& weight, const TokenRows& tokens, const LinearOutput& output)
    : kernels_(current_kernels()), weight_(weight), tokens_(tokens), output_(output) {}

const StreamingKernels& Matmul::streaming() const {
  return kernels_.streaming(weight_, tokens_.type);
}

const BlockedKernels& Matmul::blocked() const { return kernels_.blocked(weight_, tokens_.type); }

bool Matmul::is_streaming() const { return tokens_.num_tokens <= streaming().max_tokens; }

int64_t Matmul::workspace_floats() const {
  const auto input_floats = is_streaming() ? streaming().input_floats : blocked().input_floats;
  return input_floats(weight_, tokens_.num_tokens) + kAlignment;
}

void Matmul::run(float* workspace) const {
  if (tokens_.num_tokens == 0 || weight_.out_features == 0) return;
  if (is_streaming()) {
    run_streaming(align(workspace));
  } else {
    run_blocked(align(workspace));
  }
}

void Matmul::run_streaming(float* input) const {
  const StreamingKernels& kernels = streaming();
  parallel_for(tokens_.num_tokens, kPackedTokens, [&](int64_t begin, int64_t end) {
    kernels.pack(weight_, tokens_, begin, end, input);
  });
  const int64_t rows = streamed_rows(weight_);
  const int64_t scratch_floats = kernels.scratch_floats(weight_, tokens_.num_tokens, rows);
  parallel_for(weight_.out_features, rows, [&](int64_t begin, int64_t end) {
    kernels.run(weight_, input, tokens_.num_tokens, begin, end, output_,
                thread_scratch(scratch_floats));
  });
}

void Matmul::run_blocked(float* input) const {
  const BlockedKernels& kernels = blocked();
  parallel_for(
      divide_up(tokens_.num_tokens, kernels.tokens_per_panel), 1,
      [&](int64_t begin, int64_t end) { kernels.pack(weight_, tokens_, begin, end, input); });
  const int64_t rows = kernels.features_per_block;
  const int64_t num_row_blocks = divide_up(weight_.out_features, rows);
  const int64_t num_token_blocks = divide_up(tokens_.num_tokens, kBlockTokens);
  const int64_t scratch_floats = kernels.scratch_floats(std::min(tokens_.num_tokens, kBlockTokens));
  parallel_for(num_token_blocks * num_row_blocks, 1, [&](int64_t index, int64_t) {
    const int64_t token = index / num_row_blocks * kBlockTokens;
    const int64_t row = index % num_row_blocks * rows;
    const LinearBlock block{.token_begin = token,
                            .token_end = std::min(tokens_.num_tokens, token + kBlockTokens),
                            .begin = row,
                            .end = std::min(weight_.out_features, row + rows)};
    kernels.run(weight_, input, tokens_.num_tokens, block, output_, thread_scratch(scratch_floats));
  });
}

void gather_rows(const WeightRows& weight, const int32_t* ids, int64_t num_ids, void* out,
                 ElementType type) {
  const LinearKernels& kernels = current_kernels();
  const int64_t out_bytes = weight.in_features * item_size(type);
  parallel_for(num_ids, 8, [&](int64_t begin, int64_t end) {
    float* scratch = thread_scratch(weight.in_features);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t id = ids[i] < 0 ? ids[i] + weight.out_features : ids[i];
      kernels.read_row(weight, std::clamp<int64_t>(id, 0, weight.out_features - 1),
                       static_cast<char*>(out) + i * out_bytes, type, scratch);
    }
  });
}

}  // namespace vllm_metal::cpu
