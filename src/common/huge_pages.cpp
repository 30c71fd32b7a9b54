// SPDX-License-Identifier: Apache-2.0
#include "common/huge_pages.h"

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "common/mlx_buffer.h"

namespace vllm_metal {

namespace {

void advise_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  const auto address = reinterpret_cast<uintptr_t>(memory);
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t skipped = (page - address % page) % page;
  if (skipped >= bytes) return;
  // Advice: a system without huge pages may ignore it.
  madvise(static_cast<char*>(memory) + skipped, (bytes - skipped) / page * page, MADV_HUGEPAGE);
#endif
}

}  // namespace

mx::array uninitialized_in_huge_pages(const mx::Shape& shape, mx::Dtype dtype) {
  mx::array array = uninitialized(shape, dtype);
  advise_huge_pages(array.data<void>(), array.nbytes());
  return array;
}

}  // namespace vllm_metal
