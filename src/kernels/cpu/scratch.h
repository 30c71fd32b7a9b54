// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace vllm_metal::cpu {

// Uninitialised working memory of a kernel, aligned to a cache line.
class AlignedFloats {
 public:
  AlignedFloats() = default;
  explicit AlignedFloats(int64_t size)
      : size_(size), data_(static_cast<float*>(::operator new(size * sizeof(float), kAlignment))) {}

  float* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(float* memory) const { ::operator delete(memory, kAlignment); }
  };

  int64_t size_ = 0;
  std::unique_ptr<float, Free> data_;
};

// At least `size` floats that belong to the calling thread until its next call of this. Kept, so
// that kernels do not allocate once they are warm.
inline float* thread_scratch(int64_t size) {
  thread_local AlignedFloats scratch;
  if (scratch.size() < size) scratch = AlignedFloats(size);
  return scratch.data();
}

}  // namespace vllm_metal::cpu
