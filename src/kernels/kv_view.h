// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/mlx.h"

namespace vllm_metal {

namespace gpu {
struct StepPlan;
}

// Where the tokens of one step and the cached tokens of its requests lie. Plain data made once
// a step, shared by all layers, the same for both kinds of KV cache:
//
//   packed queries, requests one after the other       cache rows of one layer, one row a token
//   | r0 r0 r0 | r1 | r2 r2 |                          [num_rows, num_kv_heads, head_dim]
//   query_starts: 0  3    4  6
//
//   contiguous: row of token t of request r = block_tables[r][0] + t         (block_size == 0)
//   paged:      row = block_tables[r][t / block_size] * block_size + t % block_size
//
// Host vectors serve the fallbacks and checks, arrays of the same content the device kernels.
struct BatchLayout {
  BatchLayout(std::vector<int32_t> query_starts, std::vector<int32_t> context_lens,
              std::vector<int32_t> slot_mapping, std::vector<int32_t> block_tables,
              int32_t block_size);

  int num_requests() const { return static_cast<int>(context_lens.size()); }
  int num_tokens() const { return query_starts.back(); }
  int num_queries(int request) const { return query_starts[request + 1] - query_starts[request]; }
  int blocks_per_request() const;
  // Cache row of token `position` of request `request`.
  int64_t row(int request, int64_t position) const;

  std::vector<int32_t> query_starts;  // [num_requests + 1], first 0, last num_tokens
  std::vector<int32_t>
      context_lens;  // [num_requests] tokens in the cache once this step has written
  std::vector<int32_t> slot_mapping;  // [num_tokens] cache row that each token is written to
  std::vector<int32_t> block_tables;  // [num_requests, blocks_per_request]
  int32_t block_size;                 // tokens a block; 0: one contiguous range a request

  mx::array query_starts_array;  // int32 [num_requests + 1]
  mx::array context_lens_array;  // int32 [num_requests]
  mx::array slot_mapping_array;  // int32 [num_tokens]
  mx::array block_tables_array;  // int32 [num_requests, blocks_per_request]

  // What the GPU kernels derive from the layout, one for each kind of layer (gpu/step_plan.h).
  mutable std::vector<std::shared_ptr<const gpu::StepPlan>> gpu_plans;
};

// The last tokens of some requests of a step, as if they were the step.
//   requests  indices into the step's
BatchLayout layout_of_last_tokens(const BatchLayout& layout, const std::vector<int>& requests);

// One layer's cache, as the ops of attention see it.
struct KVView {
  mx::array& keys;    // [num_rows, num_kv_heads, head_dim]; kv_write replaces the handle
  mx::array& values;  // [num_rows, num_kv_heads, head_dim]
  const BatchLayout& layout;
};

// Makes a graph node of `primitive`, which writes both caches in place, and replaces their handles
// by its outputs. Its inputs are {keys, values, others...}.
void write_caches(std::shared_ptr<mx::Primitive> primitive, mx::array& keys, mx::array& values,
                  const std::vector<mx::array>& others);

}  // namespace vllm_metal
