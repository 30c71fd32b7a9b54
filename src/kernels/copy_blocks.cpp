// SPDX-License-Identifier: Apache-2.0
#include "kernels/copy_blocks.h"

#include <stdexcept>
#include <unordered_set>

#include "common/text.h"
#include "kernels/checks.h"
#include "kernels/cpu/copy_blocks.h"
#include "kernels/device_kernels.h"
#include "kernels/gpu/copy_blocks.h"

namespace vllm_metal {

namespace {

constexpr const char* kOp = "copy_blocks";

void check_cache(const mx::array& keys, const mx::array& values, int block_size) {
  check_caches(kOp, keys, values);
  if (block_size < 1) {
    throw std::invalid_argument(
        text("[copy_blocks] block_size must be positive but is ", block_size, "."));
  }
  if (keys.shape(0) % block_size != 0) {
    throw std::invalid_argument(text("[copy_blocks] the cache must have whole blocks of ",
                                     block_size, " rows but has ", keys.shape(0), " rows."));
  }
}

void check_block(const char* name, int32_t block, int num_blocks) {
  if (block >= 0 && block < num_blocks) return;
  throw std::invalid_argument(text("[copy_blocks] ", name, " must lie in [0, ", num_blocks,
                                   "), the blocks of the cache, but is ", block, "."));
}

void check_copies(const std::vector<BlockCopy>& copies, int num_blocks) {
  std::unordered_set<int32_t> targets;
  for (const auto& [source, target] : copies) {
    check_block("source", source, num_blocks);
    check_block("target", target, num_blocks);
    if (!targets.insert(target).second) {
      throw std::invalid_argument(text("[copy_blocks] the targets must differ but block ", target,
                                       " is the target of two copies."));
    }
  }
  for (const BlockCopy& copy : copies) {
    if (targets.contains(copy.source)) {
      throw std::invalid_argument(
          text("[copy_blocks] no source may be a target but block ", copy.source, " is both."));
    }
  }
}

void check_arguments(const mx::array& keys, const mx::array& values,
                     const std::vector<BlockCopy>& copies, int block_size) {
  check_cache(keys, values, block_size);
  check_copies(copies, keys.shape(0) / block_size);
}

mx::array with_copies(mx::array cache, const std::vector<BlockCopy>& copies, int block_size) {
  const int heads = cache.shape(1), head_dim = cache.shape(2);
  const mx::array before = cache;
  for (const auto& [source, target] : copies) {
    const int from = source * block_size, to = target * block_size;
    cache = mx::slice_update(cache,
                             mx::slice(before, {from, 0, 0}, {from + block_size, heads, head_dim}),
                             mx::Shape{to, 0, 0}, mx::Shape{to + block_size, heads, head_dim});
  }
  return cache;
}

}  // namespace

void copy_blocks(mx::array& keys, mx::array& values, const std::vector<BlockCopy>& copies,
                 int block_size) {
  check_arguments(keys, values, copies, block_size);
  if (copies.empty()) return;
  if (use_cpu_kernels()) return cpu::copy_blocks(keys, values, copies, block_size);
  if (use_gpu_cache_kernels(keys)) return gpu::copy_blocks(keys, values, copies, block_size);
  copy_blocks_fallback(keys, values, copies, block_size);
}

void copy_blocks_fallback(mx::array& keys, mx::array& values, const std::vector<BlockCopy>& copies,
                          int block_size) {
  check_arguments(keys, values, copies, block_size);
  keys = with_copies(keys, copies, block_size);
  values = with_copies(values, copies, block_size);
}

}  // namespace vllm_metal
