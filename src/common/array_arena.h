// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>

#include "common/mlx.h"

namespace vllm_metal {

// Puts arrays that stay side by side into a few large blocks of memory, which the system is asked
// to back with huge pages: a processor that streams all of them, as decoding does with weights,
// would otherwise look up a page for every 4 KB. A block lives as long as any array in it.
class ArrayArena {
 public:
  // `expected_bytes`: about what all arrays will take; blocks are no larger than what is left.
  explicit ArrayArena(size_t expected_bytes) : expected_bytes_(expected_bytes) {}

  // A copy of `array`, which is evaluated and row contiguous, in a block.
  mx::array copy(const mx::array& array);

 private:
  void open_block(size_t bytes);

  size_t expected_bytes_;
  std::optional<mx::array> block_;  // uint8
  size_t used_ = 0;                 // bytes of it
};

}  // namespace vllm_metal
