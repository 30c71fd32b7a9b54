// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu/copy_blocks.h"

#include <memory>
#include <utility>

#include "kernels/gpu/cache_kernels.h"
#include "kernels/gpu/gpu_primitive.h"
#include "kernels/gpu/kernel_arguments.h"
#include "kernels/kv_view.h"

namespace vllm_metal::gpu {

namespace {

// {key cache, value cache, copies} -> the two caches, in place.
class CopyBlocks : public GpuPrimitive {
 public:
  explicit CopyBlocks(int block_size) : block_size_(block_size) {}

  const char* name() const override { return "CopyBlocks"; }

  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (int i = 0; i < 2; ++i) alias_cache("copy_blocks", outputs[i], inputs[i]);
    const mx::array& cache = inputs[0];
    const int64_t block_bytes =
        int64_t{block_size_} * cache.shape(1) * cache.shape(2) * cache.itemsize();
    const bool wide = block_bytes % 16 == 0 && starts_at_16(cache) && starts_at_16(inputs[1]);
    const CopyBlocksArguments arguments{block_bytes / (wide ? 16 : 2)};
    const int64_t groups =
        (arguments.words_per_block + kCopyWordsPerGroup - 1) / kCopyWordsPerGroup;
    if (groups == 0) return;
    launch_list(0, inputs[2].shape(0), sizeof(BlockPair), groups, [&](size_t offset) {
      KernelLaunch kernel(copy_kernel(wide));
      kernel.uses_cache(outputs[0]).uses_cache(outputs[1]);
      kernel.reads(inputs[2], offset).value(arguments);
      return kernel;
    });
  }

 private:
  // Buffers begin at multiples of 16.
  static bool starts_at_16(const mx::array& cache) { return cache.offset() % 16 == 0; }

  int block_size_;
};

}  // namespace

void copy_blocks(mx::array& keys, mx::array& values, const std::vector<BlockCopy>& copies,
                 int block_size) {
  std::vector<int32_t> pairs;
  for (const BlockCopy& copy : copies) pairs.insert(pairs.end(), {copy.source, copy.target});
  const mx::array list = lookup_array(pairs, {static_cast<int>(copies.size()), 2});
  write_caches(std::make_shared<CopyBlocks>(block_size), keys, values, {list});
}

}  // namespace vllm_metal::gpu
