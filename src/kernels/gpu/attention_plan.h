// SPDX-License-Identifier: Apache-2.0
// How the attention of a batch is cut into groups of threads. What belongs to one request depends
// on that request alone, so its result is the same, bit for bit, whatever else is in the batch.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/gpu/kernel_arguments.h"

namespace vllm_metal::gpu {

// A request with at most so many queries is computed query by query, its keys in parts.
constexpr int kMaxDecodeQueries = 4;
// Keys of a part: enough that writing its partial result costs little beside reading them.
constexpr int kDecodeKeys = 256;
// Beyond so many parts of a query they grow instead.
constexpr int kMaxDecodeParts = 64;

struct AttentionPlan {
  std::vector<PrefillTile> tiles;  // those with most keys first: the short ones fill the end
  std::vector<DecodeWork> works;
  std::vector<MergeWork> merges;
  int num_partials = 0;
};

struct PlanArguments {
  const std::vector<int32_t>& query_starts;  // [num_requests + 1]
  const std::vector<int32_t>& context_lens;  // [num_requests]
  int group_size;                            // query heads of a key head
  int sliding_window;                        // 0: none
};

AttentionPlan plan_attention(const PlanArguments& arguments);

// Query heads of a key head that one group of attention_decode takes: 1, 2, 4 or 8.
int decode_heads(int group_size, int head_dim);

// Head sizes that attention has kernels for.
inline constexpr std::array kHeadDims = {64, 80, 96, 128, 192, 256};
bool has_attention_kernel(int head_dim);

// The lists of a plan in one array, each at a multiple of 16 bytes.
struct PackedPlan {
  explicit PackedPlan(const AttentionPlan& plan);

  std::vector<int32_t> words;
  size_t tiles_offset, works_offset, merges_offset;  // in bytes
};

}  // namespace vllm_metal::gpu
