// SPDX-License-Identifier: Apache-2.0
// Every op on every device, held against its fallback on the CPU in float32.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "selftest/check.h"

namespace vllm_metal::selftest {

// Where an op is computed.
enum class Place {
  kCpu,          // with our kernels
  kGpu,          // with our kernels where there are any for the op, else by MLX's
  kGpuFallback,  // by MLX's, what is left where ours do not compile
};

struct Scope {
  bool quick = false;                          // fewer head sizes and bits
  std::optional<std::string> why_no_gpu = {};  // the user's reason to leave it alone
  // Applied to what a place computed, before it is compared: how tests see that a wrong result is
  // found. `vllm-metal selftest` has no way to set it.
  std::function<void(std::vector<mx::array>&)> alter = {};
};

// Names are <place>/<op>/<case>/<dtype>.
std::vector<Check> kernel_checks(const Scope& scope);

}  // namespace vllm_metal::selftest
