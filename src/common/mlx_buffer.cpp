// SPDX-License-Identifier: Apache-2.0
#include "common/mlx_buffer.h"

namespace vllm_metal {

mx::array uninitialized(const mx::Shape& shape, mx::Dtype dtype) {
  size_t elements = 1;
  for (auto extent : shape) elements *= static_cast<size_t>(extent);
  return mx::array(mx::allocator::malloc(elements * mx::size_of(dtype)), shape, dtype);
}

void allocate_output(mx::array& output) { output.set_data(mx::allocator::malloc(output.nbytes())); }

void alias_output(mx::array& output, const mx::array& input) { output.copy_shared_buffer(input); }

}  // namespace vllm_metal
