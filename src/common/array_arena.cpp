// SPDX-License-Identifier: Apache-2.0
#include "common/array_arena.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "common/mlx_buffer.h"

namespace vllm_metal {

namespace {

// Large enough that what is lost at their ends does not count.
constexpr size_t kBlockBytes = size_t{64} << 20;
constexpr size_t kAlignment = 128;

size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

void advise_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  const auto address = reinterpret_cast<uintptr_t>(memory);
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t skipped = round_up(address, page) - address;
  if (skipped >= bytes) return;
  // Advice: a system without huge pages may ignore it.
  madvise(static_cast<char*>(memory) + skipped, (bytes - skipped) / page * page, MADV_HUGEPAGE);
#endif
}

}  // namespace

void ArrayArena::open_block(size_t bytes) {
  const size_t wanted = std::min(kBlockBytes, round_up(expected_bytes_, kAlignment));
  const size_t size = std::max(bytes, wanted);
  block_ = uninitialized({static_cast<mx::ShapeElem>(size / kAlignment), kAlignment}, mx::uint8);
  used_ = 0;
  expected_bytes_ -= std::min(expected_bytes_, size);
  advise_huge_pages(block_->data<void>(), size);
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
