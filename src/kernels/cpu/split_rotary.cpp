// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/split_rotary.h"

#include <memory>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_primitive.h"
#include "kernels/cpu/elementwise.h"

namespace vllm_metal::cpu {

namespace {

// {qkv, cos_sin} -> {queries, keys, values}
class SplitRotary : public CpuPrimitive {
 public:
  explicit SplitRotary(const HeadCounts& heads) : heads_(heads) {}

  const char* name() const override { return "SplitRotary"; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (mx::array& output : outputs) allocate_output(output);
    const mx::array qkv = with_even_rows(inputs[0]);
    const mx::array cos_sin = with_even_rows(inputs[1]);
    const Rows qkv_rows = rows_of(qkv);
    const SplitRotaryTokens tokens{.type = element_type_of(qkv.dtype()),
                                   .qkv = qkv.data<void>(),
                                   .qkv_stride = qkv_rows.stride,
                                   .cos_sin = cos_sin.data<float>(),
                                   .cos_sin_stride = rows_of(cos_sin).stride,
                                   .num_heads = heads_.num_heads,
                                   .num_kv_heads = heads_.num_kv_heads,
                                   .head_dim = heads_.head_dim,
                                   .rotary_dim = cos_sin.shape(1),
                                   .queries = outputs[0].data<void>(),
                                   .keys = outputs[1].data<void>(),
                                   .values = outputs[2].data<void>()};
    dispatch([tokens, count = qkv_rows.count, width = qkv_rows.width] {
      for_each_row(elementwise().split_rotary, tokens, count, width);
    });
  }

 private:
  HeadCounts heads_;
};

}  // namespace

QueryKeyValue split_rotary(const mx::array& qkv, const mx::array& cos_sin,
                           const HeadCounts& heads) {
  const mx::Shape query_shape{qkv.shape(0), heads.num_heads, heads.head_dim};
  const mx::Shape key_shape{qkv.shape(0), heads.num_kv_heads, heads.head_dim};
  auto outputs = mx::array::make_arrays({query_shape, key_shape, key_shape},
                                        {qkv.dtype(), qkv.dtype(), qkv.dtype()},
                                        std::make_shared<SplitRotary>(heads), {qkv, cos_sin});
  return {std::move(outputs[0]), std::move(outputs[1]), std::move(outputs[2])};
}

}  // namespace vllm_metal::cpu
