// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_write.h"

#include <algorithm>
#include <stdexcept>

#include "common/text.h"
#include "kernels/checks.h"
#include "kernels/cpu/kv_write.h"
#include "kernels/device_kernels.h"
#include "kernels/gpu/kv_write.h"

namespace vllm_metal {

namespace {

void check_slots(const char* op, const std::vector<int32_t>& slot_mapping, int num_rows) {
  if (slot_mapping.empty()) return;
  const auto [lowest, highest] = std::minmax_element(slot_mapping.begin(), slot_mapping.end());
  if (*lowest >= 0 && *highest < num_rows) return;
  throw std::invalid_argument(text("[", op, "] slot_mapping must lie in [0, ", num_rows,
                                   "), the rows of the cache, but has ",
                                   *lowest < 0 ? *lowest : *highest, "."));
}

void check_arguments(const KVView& view, const mx::array& keys, const mx::array& values) {
  check_caches("kv_write", view.keys, view.values);
  const mx::Shape shape{view.layout.num_tokens(), view.keys.shape(1), view.keys.shape(2)};
  check_shape("kv_write", "keys", keys, shape);
  check_shape("kv_write", "values", values, shape);
  check_same_dtype("kv_write", "keys", keys, "the cache", view.keys);
  check_same_dtype("kv_write", "values", values, "the cache", view.values);
  check_slots("kv_write", view.layout.slot_mapping, view.keys.shape(0));
}

// Writes tokens [begin, end) to the rows from `row` on.
mx::array write_run(const mx::array& cache, const mx::array& tokens, int begin, int end, int row) {
  const int heads = cache.shape(1);
  const int head_dim = cache.shape(2);
  return mx::slice_update(cache, mx::slice(tokens, {begin, 0, 0}, {end, heads, head_dim}),
                          mx::Shape{row, 0, 0}, mx::Shape{row + end - begin, heads, head_dim});
}

}  // namespace

void check_cache_for_writing(const char* op, const KVView& view, int num_kv_heads, int head_dim,
                             mx::Dtype dtype) {
  check_caches(op, view.keys, view.values);
  check_shape(op, "the key cache", view.keys, {view.keys.shape(0), num_kv_heads, head_dim});
  if (view.keys.dtype() != dtype)
    throw std::invalid_argument(
        text("[", op, "] the cache must be ", dtype, " but is ", view.keys.dtype(), "."));
  check_slots(op, view.layout.slot_mapping, view.keys.shape(0));
}

void kv_write(KVView& view, const mx::array& keys, const mx::array& values) {
  check_arguments(view, keys, values);
  if (use_cpu_kernels()) return cpu::kv_write(view, keys, values);
  if (use_gpu_cache_kernels(view.keys)) return gpu::kv_write(view, keys, values);
  kv_write_fallback(view, keys, values);
}

void kv_write_fallback(KVView& view, const mx::array& keys, const mx::array& values) {
  check_arguments(view, keys, values);
  const auto& slots = view.layout.slot_mapping;
  const int num_tokens = view.layout.num_tokens();
  for (int begin = 0, end; begin < num_tokens; begin = end) {
    end = begin + 1;
    while (end < num_tokens && slots[end] == slots[end - 1] + 1) ++end;
    view.keys = write_run(view.keys, keys, begin, end, slots[begin]);
    view.values = write_run(view.values, values, begin, end, slots[begin]);
  }
}

}  // namespace vllm_metal
