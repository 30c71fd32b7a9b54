// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mlx/primitives.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "common/mlx.h"
#include "common/mlx_buffer.h"
#include "common/text.h"
#include "kernels/gpu/device.h"

namespace vllm_metal::gpu {

// Base of the graph nodes that our GPU kernels compute. Their eval_gpu only encodes: no input is
// computed yet, the kernels run in the stream's order.
class GpuPrimitive : public mx::Primitive {
 public:
  GpuPrimitive() : mx::Primitive(mx::default_stream(mx::default_device())) {}

  void eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error(text("[", name(), "] is a GPU kernel and cannot run on the CPU."));
  }

 protected:
  static void check_cache(const char* op, const mx::array& cache) {
    if (!cache.flags().row_contiguous)
      throw std::runtime_error(text("[", op, "] the caches must be row contiguous."));
  }

  static void alias_cache(const char* op, mx::array& output, const mx::array& input) {
    check_cache(op, input);
    alias_output(output, input);
  }

  // Launches what `make(offset)` returns for a list of `count` items of `item_bytes` each that
  // begins `offset` bytes into its buffer, one row of groups an item: several launches where a
  // device has not so many groups.
  template <typename Make>
  void launch_list(size_t offset, int64_t count, size_t item_bytes, int64_t groups_x,
                   const Make& make) {
    constexpr int64_t kMaxGroups = 65532;  // of CUDA's y, and 16 byte steps for all item sizes
    for (int64_t begin = 0; begin < count; begin += kMaxGroups) {
      KernelLaunch kernel = make(offset + static_cast<size_t>(begin) * item_bytes);
      launch(kernel.groups(groups_x, std::min(kMaxGroups, count - begin)), stream());
    }
  }
};

}  // namespace vllm_metal::gpu
