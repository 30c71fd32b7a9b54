// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_view.h"

#include <cassert>
#include <cstddef>
#include <utility>

#include "kernels/device_kernels.h"
#include "kernels/gpu/device.h"

namespace vllm_metal {

namespace {

mx::array int32_array(const std::vector<int32_t>& values, mx::Shape shape) {
  if (use_gpu_kernels()) return gpu::lookup_array(values, shape);
  return mx::array(values.begin(), std::move(shape), mx::int32);
}

}  // namespace

BatchLayout::BatchLayout(std::vector<int32_t> query_starts_, std::vector<int32_t> context_lens_,
                         std::vector<int32_t> slot_mapping_, std::vector<int32_t> block_tables_,
                         int32_t block_size_)
    : query_starts(std::move(query_starts_)),
      context_lens(std::move(context_lens_)),
      slot_mapping(std::move(slot_mapping_)),
      block_tables(std::move(block_tables_)),
      block_size(block_size_),
      query_starts_array(int32_array(query_starts, {static_cast<int>(query_starts.size())})),
      context_lens_array(int32_array(context_lens, {static_cast<int>(context_lens.size())})),
      slot_mapping_array(int32_array(slot_mapping, {static_cast<int>(slot_mapping.size())})),
      block_tables_array(int32_array(block_tables, {num_requests(), blocks_per_request()})) {
  assert(!context_lens.empty() && query_starts.size() == context_lens.size() + 1);
  assert(slot_mapping.size() == static_cast<size_t>(num_tokens()));
  assert(block_tables.size() % context_lens.size() == 0);
}

int BatchLayout::blocks_per_request() const {
  return static_cast<int>(block_tables.size() / context_lens.size());
}

int64_t BatchLayout::row(int request, int64_t position) const {
  const int32_t* table = block_tables.data() + static_cast<size_t>(request) * blocks_per_request();
  if (block_size == 0) return table[0] + position;
  return static_cast<int64_t>(table[position / block_size]) * block_size + position % block_size;
}

BatchLayout layout_of_last_tokens(const BatchLayout& layout, const std::vector<int>& requests) {
  const auto width = static_cast<size_t>(layout.blocks_per_request());
  std::vector<int32_t> query_starts{0}, context_lens, slot_mapping, block_tables;
  for (const int request : requests) {
    const auto i = static_cast<size_t>(request);
    query_starts.push_back(query_starts.back() + 1);
    context_lens.push_back(layout.context_lens[i]);
    slot_mapping.push_back(
        layout.slot_mapping[static_cast<size_t>(layout.query_starts[i + 1]) - 1]);
    const auto table = layout.block_tables.begin() + static_cast<std::ptrdiff_t>(i * width);
    block_tables.insert(block_tables.end(), table, table + static_cast<std::ptrdiff_t>(width));
  }
  return BatchLayout(std::move(query_starts), std::move(context_lens), std::move(slot_mapping),
                     std::move(block_tables), layout.block_size);
}

void write_caches(std::shared_ptr<mx::Primitive> primitive, mx::array& keys, mx::array& values,
                  const std::vector<mx::array>& others) {
  std::vector<mx::array> inputs{keys, values};
  inputs.insert(inputs.end(), others.begin(), others.end());
  auto outputs = mx::array::make_arrays(
      {keys.shape(), values.shape()}, {keys.dtype(), values.dtype()}, std::move(primitive), inputs);
  keys = std::move(outputs[0]);
  values = std::move(outputs[1]);
}

}  // namespace vllm_metal
