// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/kv_write.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_primitive.h"
#include "kernels/cpu/parallel_for.h"

namespace vllm_metal::cpu {

namespace {

// Bytes of keys that a thread must have before waking another one pays.
constexpr int64_t kBytesPerRange = 128 * 1024;

// Copies tokens into cache rows. Strides in bytes.
struct RowWriter {
  RowWriter(const mx::array& tokens, mx::array& cache)
      : source(tokens.data<char>()),
        target(cache.data<char>()),
        num_heads(tokens.shape(1)),
        head_bytes(tokens.shape(2) * static_cast<int64_t>(tokens.itemsize())),
        token_stride(tokens.strides()[0] * static_cast<int64_t>(tokens.itemsize())),
        head_stride(tokens.strides()[1] * static_cast<int64_t>(tokens.itemsize())) {}

  void write(int64_t token, int64_t row) const {
    const char* from = source + token * token_stride;
    char* to = target + row * num_heads * head_bytes;
    if (head_stride == head_bytes) {
      std::memcpy(to, from, num_heads * head_bytes);
      return;
    }
    for (int64_t head = 0; head < num_heads; ++head)
      std::memcpy(to + head * head_bytes, from + head * head_stride, head_bytes);
  }

  const char* source;  // [num_tokens, num_heads, head_dim]
  char* target;        // [num_rows, num_heads, head_dim], row contiguous
  int64_t num_heads;
  int64_t head_bytes;
  int64_t token_stride;
  int64_t head_stride;
};

// {key cache, value cache, keys, values, slot_mapping} -> the two caches, in place.
class KVWrite : public CpuPrimitive {
 public:
  const char* name() const override { return "KVWrite"; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const mx::array keys = with_contiguous_last_dimension(inputs[2]);
    const mx::array values = with_contiguous_last_dimension(inputs[3]);
    for (int i = 0; i < 2; ++i) alias_cache("kv_write", outputs[i], inputs[i]);
    dispatch([key_writer = RowWriter(keys, outputs[0]),
              value_writer = RowWriter(values, outputs[1]), slots = inputs[4].data<int32_t>(),
              num_tokens = keys.shape(0)] {
      const int64_t row_bytes = key_writer.num_heads * key_writer.head_bytes;
      const int64_t grain = std::max<int64_t>(1, kBytesPerRange / std::max<int64_t>(1, row_bytes));
      parallel_for(num_tokens, grain, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
          key_writer.write(token, slots[token]);
          value_writer.write(token, slots[token]);
        }
      });
    });
  }
};

}  // namespace

void kv_write(KVView& view, const mx::array& keys, const mx::array& values) {
  write_caches(std::make_shared<KVWrite>(), view.keys, view.values,
               {keys, values, view.layout.slot_mapping_array});
}

}  // namespace vllm_metal::cpu
