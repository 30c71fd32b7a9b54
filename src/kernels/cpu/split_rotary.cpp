// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/split_rotary.h"

#include <memory>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_primitive.h"
#include "kernels/cpu/elementwise.h"

namespace vllm_metal::cpu {

namespace {

// The part that splitting alone and writing to the cache share.
class RotaryPrimitive : public CpuPrimitive {
 public:
  explicit RotaryPrimitive(const HeadCounts& heads) : heads_(heads) {}

 protected:
  // Rows `slots` of keys and values are written, those of the tokens themselves if it is null.
  void rotate(const mx::array& qkv_input, const mx::array& cos_sin_input, mx::array& queries,
              mx::array& keys, mx::array& values, const int32_t* slots) {
    const mx::array qkv = with_even_rows(qkv_input);
    const mx::array cos_sin = with_even_rows(cos_sin_input);
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
                                   .queries = queries.data<void>(),
                                   .keys = keys.data<void>(),
                                   .values = values.data<void>(),
                                   .slots = slots};
    dispatch([tokens, count = qkv_rows.count, width = qkv_rows.width] {
      for_each_row(elementwise().split_rotary, tokens, count, width);
    });
  }

 private:
  HeadCounts heads_;
};

// {qkv, cos_sin} -> {queries, keys, values}
class SplitRotary : public RotaryPrimitive {
 public:
  using RotaryPrimitive::RotaryPrimitive;

  const char* name() const override { return "SplitRotary"; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (mx::array& output : outputs) allocate_output(output);
    rotate(inputs[0], inputs[1], outputs[0], outputs[1], outputs[2], nullptr);
  }
};

// {qkv, cos_sin, key cache, value cache, slot_mapping} -> {queries, and the two caches, in place}
class RotaryKVWrite : public RotaryPrimitive {
 public:
  using RotaryPrimitive::RotaryPrimitive;

  const char* name() const override { return "RotaryKVWrite"; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    allocate_output(outputs[0]);
    for (int i = 1; i < 3; ++i) alias_cache("rotary_kv_write", outputs[i], inputs[i + 1]);
    rotate(inputs[0], inputs[1], outputs[0], outputs[1], outputs[2], inputs[4].data<int32_t>());
  }
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

mx::array rotary_kv_write(const mx::array& qkv, const mx::array& cos_sin, const HeadCounts& heads,
                          KVView& view) {
  return rotary_kv_write_node(std::make_shared<RotaryKVWrite>(heads), qkv, cos_sin, heads, view);
}

}  // namespace vllm_metal::cpu
