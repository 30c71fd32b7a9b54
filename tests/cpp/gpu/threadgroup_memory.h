// SPDX-License-Identifier: Apache-2.0
// The arrays in threadgroup memory of the group that runs, and buffers in device memory.
#pragma once

#include <cstring>
#include <list>
#include <utility>
#include <vector>

#include "gpu/checked_pointer.h"

namespace gpu_harness {

class ThreadgroupMemory {
 public:
  static constexpr size_t kLimit = 32 << 10;  // bytes a group may have

  void clear() {
    arrays_.clear();
    used_ = 0;
  }

  // The array that is declared at `file`:`line`: the same one for all threads of the group.
  template <typename T>
  CheckedPointer<Space::kThreadgroup, T> array(const char* name, const char* file, int line,
                                               size_t size) {
    for (Array& array : arrays_) {
      if (array.line == line && std::strcmp(array.file, file) == 0) return pointer<T>(array);
    }
    used_ += size * sizeof(T);
    if (used_ > kLimit) {
      throw KernelError("threadgroup memory: " + std::to_string(used_) + " bytes with " + name +
                        " are more than " + std::to_string(kLimit));
    }
    Array& array = arrays_.emplace_back();
    array.file = file;
    array.line = line;
    array.bytes.assign(size * sizeof(T) / sizeof(double) + 1, -1.0);
    array.allocation.name = name;
    array.allocation.space = Space::kThreadgroup;
    array.allocation.size = static_cast<int64_t>(size);
    array.allocation.shadow.resize(size);
    return pointer<T>(array);
  }

 private:
  struct Array {
    const char* file;
    int line;
    std::vector<double> bytes;  // aligned for all that kernels have
    Allocation allocation;
  };

  template <typename T>
  static CheckedPointer<Space::kThreadgroup, T> pointer(Array& array) {
    return {reinterpret_cast<T*>(array.bytes.data()), &array.allocation};
  }

  std::list<Array> arrays_;
  size_t used_ = 0;
};

// A buffer of the host that kernels read and write.
template <typename T>
class DeviceBuffer {
 public:
  DeviceBuffer(const char* name, std::vector<T> values) : values_(std::move(values)) {
    allocation_.name = name;
    allocation_.space = Space::kDevice;
    allocation_.size = static_cast<int64_t>(values_.size());
    allocation_.written = true;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  CheckedPointer<Space::kDevice, const T> input() {
    allocation_.shadow.clear();
    return {values_.data(), &allocation_};
  }
  // For one dispatch that writes it.
  CheckedPointer<Space::kDevice, T> output() {
    allocation_.shadow.assign(values_.size(), Shadow{});
    return {values_.data(), &allocation_};
  }
  const std::vector<T>& values() const { return values_; }
  void assign(std::vector<T> values) {
    values_ = std::move(values);
    allocation_.size = static_cast<int64_t>(values_.size());
  }

 private:
  std::vector<T> values_;
  Allocation allocation_;
};

}  // namespace gpu_harness
