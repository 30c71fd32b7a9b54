// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/mlx.h"

namespace vllm_metal::gpu {

// One instance of a kernel's template: "attention_decode" of "half, 128, 4".
struct KernelName {
  std::string function;
  std::string arguments;

  std::string expression() const { return function + "<" + arguments + ">"; }
  std::string identifier() const;  // "attention_decode_half_128_4"
};

// A kernel and how many threads of a group run it.
struct KernelUse {
  KernelName name;
  int threads_per_group;
};

// The kernels' word for float32, float16 or bfloat16.
std::string element_name(mx::Dtype dtype);

// One kernel, what it is given and how many groups run it: all that a device has to know.
class KernelLaunch {
 public:
  enum class Use { kRead, kWrite, kCache, kValue };
  struct Argument {
    Use use;
    const mx::array* array;   // all but kValue: must live until the launch
    size_t offset;            // in bytes, a multiple of 16
    std::vector<char> value;  // kValue
  };

  explicit KernelLaunch(KernelUse kernel) : kernel_(std::move(kernel)) {}

  // In the order of the kernel's arguments.
  KernelLaunch& reads(const mx::array& array, size_t offset = 0);
  KernelLaunch& writes(const mx::array& array);
  // Bound as written, also where it is only read: what writes the cache next then waits for this
  // kernel, which a device's own record of readers does not reach across command buffers.
  KernelLaunch& uses_cache(const mx::array& array);
  template <typename T>
  KernelLaunch& value(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const char* bytes = reinterpret_cast<const char*>(&value);
    arguments_.push_back({Use::kValue, nullptr, 0, std::vector<char>(bytes, bytes + sizeof(T))});
    return *this;
  }
  KernelLaunch& groups(int64_t x, int64_t y);

  const KernelName& name() const { return kernel_.name; }
  const std::vector<Argument>& arguments() const { return arguments_; }
  int threads_per_group() const { return kernel_.threads_per_group; }
  int64_t groups_x() const { return groups_x_; }
  int64_t groups_y() const { return groups_y_; }

 private:
  KernelUse kernel_;
  int64_t groups_x_ = 1;
  int64_t groups_y_ = 1;
  std::vector<Argument> arguments_;
};

}  // namespace vllm_metal::gpu
