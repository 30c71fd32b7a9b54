// SPDX-License-Identifier: Apache-2.0
// Preloaded into servers: while the file that NO_WORKING_MEMORY names is there, kernels get no
// working memory. It is what the core allocates with an alignment.
#include <unistd.h>

#include <cstdlib>
#include <new>

void* operator new(std::size_t size, std::align_val_t alignment) {
  static const char* const file = std::getenv("NO_WORKING_MEMORY");
  const bool is_away = file != nullptr && access(file, F_OK) == 0;
  const auto align = static_cast<std::size_t>(alignment);
  void* memory = is_away ? nullptr : std::aligned_alloc(align, (size / align + 1) * align);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
