// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/copy_blocks.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "kernels/cpu/cpu_primitive.h"
#include "kernels/cpu/parallel_for.h"
#include "kernels/kv_view.h"

namespace vllm_metal::cpu {

namespace {

// Bytes that a thread must have before waking another one pays.
constexpr int64_t kBytesPerRange = 128 * 1024;

// {key cache, value cache} -> the two caches, in place.
class CopyBlocks : public CpuPrimitive {
 public:
  CopyBlocks(std::vector<BlockCopy> copies, int block_size)
      : copies_(std::make_shared<const std::vector<BlockCopy>>(std::move(copies))),
        block_size_(block_size) {}

  const char* name() const override { return "CopyBlocks"; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (int i = 0; i < 2; ++i) alias_cache("copy_blocks", outputs[i], inputs[i]);
    const mx::array& keys = inputs[0];
    const int64_t block_bytes = int64_t{block_size_} * keys.shape(1) * keys.shape(2) *
                                static_cast<int64_t>(keys.itemsize());
    // The graph may be gone when the task runs: it holds the copies itself.
    dispatch([copies = copies_, block_bytes, key_cache = outputs[0].data<char>(),
              value_cache = outputs[1].data<char>()] {
      const int64_t grain =
          std::max<int64_t>(1, kBytesPerRange / std::max<int64_t>(1, 2 * block_bytes));
      parallel_for(static_cast<int64_t>(copies->size()), grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const auto [source, target] = (*copies)[i];
          for (char* cache : {key_cache, value_cache})
            std::memcpy(cache + target * block_bytes, cache + source * block_bytes, block_bytes);
        }
      });
    });
  }

 private:
  std::shared_ptr<const std::vector<BlockCopy>> copies_;
  int block_size_;
};

}  // namespace

void copy_blocks(mx::array& keys, mx::array& values, const std::vector<BlockCopy>& copies,
                 int block_size) {
  write_caches(std::make_shared<CopyBlocks>(copies, block_size), keys, values, {});
}

}  // namespace vllm_metal::cpu
