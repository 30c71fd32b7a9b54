// SPDX-License-Identifier: Apache-2.0
// How memory is divided between the model, its activations and the KV cache. Pure arithmetic: who
// calls it says what the machine has (platform/memory.h, platform/device.h) and sets MLX's limits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace vllm_metal {

// What there is and what is needed, in bytes.
struct MemoryFacts {
  uint64_t total;        // of the device: unified memory, or the GPU's own
  uint64_t available;    // of it for this process, before the model was loaded
  uint64_t working_set;  // what the device recommends to use at most; `total` where it does not say
  uint64_t model;        // the weights
  uint64_t activations;  // of the largest step
};

// What the KV cache is made of, and how long a sequence it has to hold.
struct CacheShape {
  uint64_t block_bytes;  // a block of all layers
  int block_size;        // tokens
  int64_t max_model_len;
  bool shortens;  // a smaller cache than for max_model_len will do (--max-model-len -1)
};

// What the user asked for. The first that is given decides, in this order.
struct MemoryWishes {
  std::optional<uint64_t> num_blocks;      // --num-gpu-blocks-override
  std::optional<uint64_t> kv_cache_bytes;  // --kv-cache-memory-bytes
  std::optional<double> fraction;          // VLLM_METAL_MEMORY_FRACTION, unless it is `auto`
  std::optional<double> utilization;       // --gpu-memory-utilization, if it was given
  bool paged;                              // which decides what `auto` means
  // VLLM_METAL_PREFIX_CACHE_FRACTION of the working set for the prefix cache of the MLX-managed
  // cache, where there is to be one. It comes out of a share, and on top of other sizes.
  std::optional<double> prefix_cache = {};
};

// The result, in bytes.
struct MemoryPlan {
  std::string basis;  // what decided, as the user wrote it
  MemoryFacts facts;
  CacheShape cache;
  uint64_t kv_cache = 0;      // whole blocks
  uint64_t prefix_cache = 0;  // likewise
  uint64_t margin = 0;        // for what MLX keeps for reuse, and rounding
  // For MLX. `wired` is what may be kept from being paged out: less than the working set, since
  // wiring more has stopped Macs.
  uint64_t memory_limit = 0;
  uint64_t cache_limit = 0;
  uint64_t wired_limit = 0;

  // A table of some lines for the log.
  std::string table() const;
};

// Throws std::invalid_argument where a wish is not a possible one, std::runtime_error with all
// figures and what to do where the memory does not suffice.
//
// `auto` without blocks: the cache of one sequence of max_model_len and a tenth, and a fifth of the
// model and the cache for everything else. `auto` with blocks (paged): 90 % of what is available
// and recommended. A fraction is one of the total and fails where so much is not available; so is
// the utilization, which takes what is available then, as vLLM's users know it from other
// platforms.
MemoryPlan plan_memory(const MemoryFacts& facts, const CacheShape& cache,
                       const MemoryWishes& wishes);

}  // namespace vllm_metal
