// SPDX-License-Identifier: Apache-2.0
// That writing into the KV cache takes no memory however large the cache is, with steps under way
// that still read it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/kv_write.h"
#include "selftest/check.h"

namespace vllm_metal::selftest {

struct PoolScope {
  uint64_t max_bytes;                          // of keys and values, at least 1 MiB
  std::optional<std::string> why_no_gpu = {};  // the user's reason to leave it alone
  // The op. Tests see that one that copies is found.
  void (*write)(KVView&, const mx::array&, const mx::array&) = kv_write;
};

// Pools of 1 MiB, 4 MiB, … max_bytes on the CPU and the GPU. Names are <device>/pool_of_<n>_MiB.
// The error is the memory that 20 writes took, in bytes.
std::vector<Check> write_in_place_checks(const PoolScope& scope);

}  // namespace vllm_metal::selftest
