// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu/rotary_kv_write.h"

#include <memory>
#include <vector>

#include "kernels/gpu/cache_kernels.h"
#include "kernels/gpu/gpu_primitive.h"
#include "kernels/gpu/kernel_arguments.h"

namespace vllm_metal::gpu {

namespace {

// {qkv, cos_sin, key cache, value cache, slot_mapping} -> {queries, the two caches in place}
class RotaryKVWrite : public GpuPrimitive {
 public:
  explicit RotaryKVWrite(const HeadCounts& heads) : heads_(heads) {}

  const char* name() const override { return "RotaryKVWrite"; }

  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    allocate(outputs[0], stream());
    for (int i = 1; i < 3; ++i) alias_cache("rotary_kv_write", outputs[i], inputs[i + 1]);
    const int num_tokens = inputs[0].shape(0);
    if (num_tokens == 0) return;
    const int num_heads = heads_.num_heads + 2 * heads_.num_kv_heads;
    const RotaryKVWriteArguments arguments{int64_t{heads_.num_kv_heads} * heads_.head_dim,
                                           heads_.num_heads, heads_.num_kv_heads, heads_.head_dim,
                                           inputs[1].shape(1)};
    KernelLaunch kernel(rotary_kernel(outputs[0].dtype()));
    kernel.reads(inputs[0]).reads(inputs[1]).reads(inputs[4]);
    kernel.uses_cache(outputs[1]).uses_cache(outputs[2]).writes(outputs[0]).value(arguments);
    launch(kernel.groups(num_tokens, (num_heads + kRotaryHeads - 1) / kRotaryHeads), stream());
  }

 private:
  HeadCounts heads_;
};

}  // namespace

mx::array rotary_kv_write(const mx::array& qkv, const mx::array& cos_sin, const HeadCounts& heads,
                          KVView& view) {
  return rotary_kv_write_node(std::make_shared<RotaryKVWrite>(heads), mx::contiguous(qkv),
                              mx::contiguous(cos_sin), heads, view);
}

}  // namespace vllm_metal::gpu
