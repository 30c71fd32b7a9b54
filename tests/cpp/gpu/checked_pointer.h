// SPDX-License-Identifier: Apache-2.0
// Pointers of kernels. Each access is checked: that it lies within the array, that the element
// has been written, and that no other thread writes it, or reads what this one writes, without a
// barrier in between.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "gpu/threadgroup.h"

namespace gpu_harness {

enum class Space { kDevice, kThreadgroup };

// Who has last touched an element, and when.
struct Shadow {
  int64_t writer = kNobody;
  int64_t reader = kNobody;
  uint32_t write_epoch = 0;
  uint32_t read_epoch = 0;

  static constexpr int64_t kNobody = -1;
  static constexpr int64_t kSeveral = -2;
};

struct Allocation {
  std::string name;
  Space space;
  int64_t size;                // elements
  std::vector<Shadow> shadow;  // [size]; empty: only bounds are checked
  bool written = false;        // from the start, by the host

  [[noreturn]] void fail(const char* what, int64_t index) const {
    std::ostringstream out;
    out << what << " of " << name << "[" << index << "], which has " << size << " elements";
    throw KernelError(out.str());
  }
  // Groups of one dispatch are in no order, and threadgroup barriers do not order device memory
  // here: a dispatch is one epoch of it.
  int64_t thread() const {
    const Dispatch& dispatch = Dispatch::current();
    return space == Space::kDevice ? dispatch.global_thread() : dispatch.thread();
  }
  uint32_t epoch() const { return space == Space::kDevice ? 0 : Dispatch::current().epoch(); }

  void check_read(int64_t index) {
    if (index < 0 || index >= size) fail("read out of bounds", index);
    if (shadow.empty()) return;
    Shadow& state = shadow[index];
    if (state.writer == Shadow::kNobody && !written) fail("read before any write", index);
    const int64_t self = thread();
    const uint32_t now = epoch();
    if (state.writer >= 0 && state.writer != self && state.write_epoch == now)
      fail("race: read after a write of another thread without a barrier", index);
    const bool others = state.reader != Shadow::kNobody && state.reader != self;
    state.reader = others && state.read_epoch == now ? Shadow::kSeveral : self;
    state.read_epoch = now;
  }
  void check_write(int64_t index) {
    if (index < 0 || index >= size) fail("write out of bounds", index);
    if (shadow.empty()) return;
    Shadow& state = shadow[index];
    const int64_t self = thread();
    const uint32_t now = epoch();
    if (state.writer >= 0 && state.writer != self && state.write_epoch == now)
      fail("race: write after a write of another thread without a barrier", index);
    if (state.reader != Shadow::kNobody && state.reader != self && state.read_epoch == now)
      fail("race: write after a read of another thread without a barrier", index);
    state.writer = self;
    state.write_epoch = now;
  }
};

// What `pointer[i]` is.
template <typename T>
class CheckedReference {
 public:
  CheckedReference(T* value, Allocation* allocation, int64_t index)
      : value_(value), allocation_(allocation), index_(index) {}
  operator T() const {
    allocation_->check_read(index_);
    return *value_;
  }
  template <typename U>
  explicit operator U() const {
    return U(T(*this));
  }
  CheckedReference& operator=(const T& value) {
    allocation_->check_write(index_);
    *value_ = value;
    return *this;
  }
  CheckedReference& operator=(const CheckedReference& other) { return *this = T(other); }
  CheckedReference(const CheckedReference&) = default;

 private:
  T* value_;
  Allocation* allocation_;
  int64_t index_;
};

// `T*` in one of the address spaces; pointers of different spaces do not convert.
template <Space kSpace, typename T>
class CheckedPointer {
 public:
  using Value = std::remove_const_t<T>;

  CheckedPointer() = default;
  CheckedPointer(Value* data, Allocation* allocation, int64_t index = 0)
      : data_(data), allocation_(allocation), index_(index) {}
  operator CheckedPointer<kSpace, const Value>() const { return {data_, allocation_, index_}; }

  template <typename Index>
  auto operator[](Index i) const {
    const int64_t index = index_ + static_cast<int64_t>(i);
    if constexpr (std::is_const_v<T>) {
      allocation_->check_read(index);
      return data_[index];
    } else {
      return CheckedReference<Value>(data_ + index, allocation_, index);
    }
  }
  template <typename Offset>
  CheckedPointer operator+(Offset offset) const {
    return {data_, allocation_, index_ + static_cast<int64_t>(offset)};
  }
  template <typename Offset>
  CheckedPointer& operator+=(Offset offset) {
    return *this = *this + offset;
  }
  bool aligned(int64_t elements) const { return index_ % elements == 0; }

 private:
  Value* data_ = nullptr;  // of the array's first element
  Allocation* allocation_ = nullptr;
  int64_t index_ = 0;
};

}  // namespace gpu_harness
