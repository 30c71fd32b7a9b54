// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu/kernel_launch.h"

#include <cassert>
#include <cctype>

namespace vllm_metal::gpu {

std::string KernelName::identifier() const {
  std::string result = function + "_";
  for (const char c : arguments) {
    if (std::isalnum(static_cast<unsigned char>(c))) {
      result += c;
    } else if (result.back() != '_') {
      result += '_';
    }
  }
  return result;
}

std::string element_name(mx::Dtype dtype) {
  if (dtype == mx::float32) return "float";
  return dtype == mx::float16 ? "half" : "bfloat";
}

KernelLaunch& KernelLaunch::reads(const mx::array& array, size_t offset) {
  assert(offset % 16 == 0);
  arguments_.push_back({Use::kRead, &array, offset, {}});
  return *this;
}

KernelLaunch& KernelLaunch::writes(const mx::array& array) {
  arguments_.push_back({Use::kWrite, &array, 0, {}});
  return *this;
}

KernelLaunch& KernelLaunch::uses_cache(const mx::array& array) {
  arguments_.push_back({Use::kCache, &array, 0, {}});
  return *this;
}

KernelLaunch& KernelLaunch::groups(int64_t x, int64_t y) {
  groups_x_ = x;
  groups_y_ = y;
  return *this;
}

}  // namespace vllm_metal::gpu
