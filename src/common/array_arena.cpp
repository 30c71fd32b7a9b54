// SPDX-License-Identifier: Apache-2.0
#include "common/array_arena.h"

#include <algorithm>
#include <cstring>

#include "common/huge_pages.h"
#include "common/mlx_buffer.h"

namespace vllm_metal {

namespace {

// Large enough that what is lost at their ends does not count.
constexpr size_t kBlockBytes = size_t{64} << 20;
constexpr size_t kAlignment = 128;

size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

void ArrayArena::open_block(size_t bytes) {
  const size_t wanted = std::min(kBlockBytes, round_up(expected_bytes_, kAlignment));
  const size_t size = std::max(bytes, wanted);
  block_ = uninitialized_in_huge_pages({static_cast<mx::ShapeElem>(size / kAlignment), kAlignment},
                                       mx::uint8);
  used_ = 0;
  expected_bytes_ -= std::min(expected_bytes_, size);
}

mx::array ArrayArena::copy(const mx::array& array) {
  const size_t bytes = round_up(array.nbytes(), kAlignment);
  if (!block_ || block_->nbytes() - used_ < bytes) open_block(bytes);
  mx::array placed = part_of(*block_, used_, array.shape(), array.dtype());
  std::memcpy(placed.data<void>(), array.data<void>(), array.nbytes());
  used_ += bytes;
  return placed;
}

}  // namespace vllm_metal
