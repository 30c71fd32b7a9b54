// SPDX-License-Identifier: Apache-2.0
#include "common/mlx_buffer.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <list>
#include <map>
#include <mutex>
#include <stdexcept>

#include "common/text.h"

namespace vllm_metal {

namespace {

using mx::allocator::Buffer;

// Buffers of outputs that are no longer used, for any thread.
class ReusableBuffers {
 public:
  // A buffer of at least `bytes`, and of little more; null if there is none.
  Buffer take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto found = by_size_.lower_bound(bytes);
    if (found == by_size_.end() || found->first > bytes + bytes / 4) return Buffer(nullptr);
    const Buffer buffer = *found->second;
    erase(found);
    return buffer;
  }

  void give_back(Buffer buffer) {
    const size_t bytes = mx::allocator::allocator().size(buffer);
    if (bytes > kMaxReusableBytes) return mx::allocator::allocator().free(buffer);
    const std::lock_guard lock(mutex_);
    trim(kMaxReusableBytes - bytes);
    by_age_.push_back(buffer);
    by_size_.emplace(bytes, std::prev(by_age_.end()));
    total_ += bytes;
  }

  void release() {
    const std::lock_guard lock(mutex_);
    trim(0);
  }

  size_t total() {
    const std::lock_guard lock(mutex_);
    return total_;
  }

 private:
  using BySize = std::multimap<size_t, std::list<Buffer>::iterator>;

  // Frees the buffers that were not needed for longest.
  void trim(size_t limit) {
    while (total_ > limit) {
      const Buffer oldest = by_age_.front();
      auto found = by_size_.find(mx::allocator::allocator().size(oldest));
      while (found->second != by_age_.begin()) ++found;
      erase(found);
      mx::allocator::allocator().free(oldest);
    }
  }

  void erase(BySize::iterator entry) {
    total_ -= entry->first;
    by_age_.erase(entry->second);
    by_size_.erase(entry);
  }

  std::mutex mutex_;
  std::list<Buffer> by_age_;  // given back first at the front
  BySize by_size_;
  size_t total_ = 0;
};

// Never destroyed: arrays of static objects may outlive any other.
ReusableBuffers& reusable_buffers() {
  static auto* buffers = new ReusableBuffers();
  return *buffers;
}

// Below, the heap gives used memory anyway.
constexpr size_t kMinReusableBytes = size_t{64} << 10;

// Whether the heap has so much; it is not touched, so that large sizes cost two calls of the
// system.
bool heap_has(size_t bytes) {
  void* volatile trial = std::malloc(bytes);  // which compilers may not leave out
  const bool found = trial != nullptr || bytes == 0;
  std::free(trial);
  return found;
}

// What MLX's ops may need beside what steps announce: arrays of a few numbers, mostly.
constexpr size_t kAlwaysFreeBytes = size_t{1} << 20;

std::atomic<size_t> bytes_to_leave_free = kAlwaysFreeBytes;

[[noreturn]] void no_memory(size_t bytes) {
  throw std::runtime_error(
      text("[memory] cannot allocate ", bytes, " bytes: the system has no more."));
}

mx::allocator::Data small_memory(size_t bytes) {
  mx::allocator::Data data = mx::allocator::malloc(bytes);
  if (bytes > 0 && data.buffer().ptr() == nullptr) no_memory(bytes);
  return data;
}

}  // namespace

void expect_memory(size_t bytes) {
  if (mx::default_device() != mx::Device(mx::Device::cpu)) return;
  const size_t with_free = bytes + bytes_to_leave_free.load(std::memory_order_relaxed);
  if (heap_has(with_free)) return;
  release_reusable_memory();
  if (!heap_has(with_free)) no_memory(bytes);
}

void leave_memory_free(size_t bytes) {
  bytes_to_leave_free.store(kAlwaysFreeBytes + bytes, std::memory_order_relaxed);
}

mx::array uninitialized(const mx::Shape& shape, mx::Dtype dtype) {
  size_t elements = 1;
  for (auto extent : shape) elements *= static_cast<size_t>(extent);
  expect_memory(elements * mx::size_of(dtype));
  return mx::array(mx::allocator::malloc(elements * mx::size_of(dtype)), shape, dtype);
}

mx::array weak_handle(const mx::array& array) { return mx::array::unsafe_weak_copy(array); }

void allocate_from_mlx(mx::array& output) {
  output.set_data(mx::allocator::malloc(output.nbytes()));
}

void adopt_buffer(mx::array& output, void* buffer, void (*release)(void*)) {
  output.set_data(
      mx::allocator::Data(Buffer(buffer), [release](Buffer unused) { release(unused.ptr()); }));
}

void allocate_output(mx::array& output) {
  const size_t bytes = output.nbytes();
  if (bytes < kMinReusableBytes) return output.set_data(small_memory(bytes));
  Buffer buffer = reusable_buffers().take(bytes);
  if (buffer.ptr() == nullptr) {
    // What is kept counts as in use: MLX would hold steps back to get below its limit.
    if (mx::get_active_memory() + bytes > mx::get_memory_limit()) release_reusable_memory();
    expect_memory(bytes);
    buffer = mx::allocator::allocator().malloc(bytes);
  }
  output.set_data(
      mx::allocator::Data(buffer, [](Buffer unused) { reusable_buffers().give_back(unused); }));
}

size_t reusable_bytes() { return reusable_buffers().total(); }

void release_reusable_memory() { reusable_buffers().release(); }

MemoryUse memory_use() {
  const size_t all = mx::get_active_memory();
  const size_t reusable = std::min(reusable_bytes(), all);  // which may change in between
  return {.active = all - reusable,
          .peak = mx::get_peak_memory(),
          .cache = mx::get_cache_memory() + reusable};
}

mx::array part_of(const mx::array& block, size_t offset, const mx::Shape& shape, mx::Dtype dtype) {
  mx::array part(shape, dtype, nullptr, {});
  mx::Strides strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  part.copy_shared_buffer(block, strides, {true, true, shape.size() <= 1}, part.size(),
                          static_cast<int64_t>(offset / part.itemsize()));
  part.set_status(mx::array::Status::available);
  return part;
}

void alias_output(mx::array& output, const mx::array& input) { output.copy_shared_buffer(input); }

}  // namespace vllm_metal
