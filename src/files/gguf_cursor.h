// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "files/gguf.h"

namespace vllm_metal {

// Reads a GGUF file's values one after the other, never past its end and never allocating more
// than what the bytes that follow can fill. Throws std::invalid_argument.
class GgufCursor {
 public:
  using Read = std::function<void(uint64_t offset, std::span<std::byte> out)>;

  GgufCursor(Read read, uint64_t file_size);

  uint64_t position() const { return position_; }  // bytes from the start of the file

  void take(std::span<std::byte> out);

  template <typename T>
  T take() {
    static_assert(std::endian::native == std::endian::little);
    T value;
    take(std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }

  bool take_bool();
  // A length-prefixed UTF-8 string; `what` names it in errors.
  std::string take_string(const char* what, uint64_t max_bytes);
  // A number of things that take at least `min_bytes` each, not more than `max_count`.
  uint64_t take_count(const char* what, uint64_t min_bytes, uint64_t max_count = UINT64_MAX);
  // A metadata value after its kind.
  GgufValue take_value();

 private:
  // Widened, an element takes up to 32 bytes; the largest real arrays are vocabularies, of which
  // a file has four or five.
  static constexpr uint64_t kMaxArrayElements = uint64_t{1} << 24;

  uint64_t remaining() const { return end_ - position_; }
  void refill();
  GgufArray take_array();

  Read read_;
  uint64_t file_size_;
  uint64_t end_;  // where the header must have ended
  uint64_t position_ = 0;
  uint64_t array_elements_left_ = kMaxArrayElements;
  uint64_t buffer_begin_ = 0;
  std::vector<std::byte> buffer_;
};

}  // namespace vllm_metal
