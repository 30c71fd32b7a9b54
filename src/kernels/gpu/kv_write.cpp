// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu/kv_write.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/gpu/cache_kernels.h"
#include "kernels/gpu/gpu_primitive.h"
#include "kernels/gpu/kernel_arguments.h"

namespace vllm_metal::gpu {

namespace {

// {key cache, value cache, keys, values, slot_mapping} -> the two caches, in place.
class KVWrite : public GpuPrimitive {
 public:
  const char* name() const override { return "KVWrite"; }

  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (int i = 0; i < 2; ++i) alias_cache("kv_write", outputs[i], inputs[i]);
    const mx::array &keys = inputs[2], &values = inputs[3];
    if (keys.size() == 0) return;
    KVWriteArguments arguments{};
    std::copy_n(keys.strides().begin(), 3, arguments.key_strides);
    std::copy_n(values.strides().begin(), 3, arguments.value_strides);
    arguments.num_kv_heads = keys.shape(1);
    arguments.head_dim = keys.shape(2);
    arguments.cache_row_stride = int64_t{keys.shape(1)} * keys.shape(2);
    KernelLaunch kernel(write_kernel(keys.dtype()));
    // They may lie in a cache themselves, whose next write must wait for this.
    kernel.uses_cache(keys).uses_cache(values).reads(inputs[4]);
    kernel.uses_cache(outputs[0]).uses_cache(outputs[1]).value(arguments);
    launch(kernel.groups(keys.shape(0), 1), stream());
  }
};

}  // namespace

void kv_write(KVView& view, const mx::array& keys, const mx::array& values) {
  write_caches(std::make_shared<KVWrite>(), view.keys, view.values,
               {keys, values, view.layout.slot_mapping_array});
}

}  // namespace vllm_metal::gpu
