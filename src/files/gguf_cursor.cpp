// SPDX-License-Identifier: Apache-2.0
#include "files/gguf_cursor.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "common/text.h"
#include "files/utf8.h"

namespace vllm_metal {

namespace {

constexpr uint64_t kMaxHeaderBytes = uint64_t{256} << 20;
constexpr uint64_t kBufferBytes = 1 << 16;

// The format's numbers for the kinds of metadata values.
enum class ValueKind : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64
};

template <typename T, typename Take>
std::vector<T> take_elements(uint64_t length, Take take) {
  std::vector<T> values;
  values.reserve(length);
  for (uint64_t i = 0; i < length; ++i) values.push_back(take());
  return values;
}

// Elements of the stored type, widened.
template <typename Wide, typename Stored>
GgufArray take_numbers(GgufCursor& cursor, uint64_t length) {
  return take_elements<Wide>(length, [&] { return static_cast<Wide>(cursor.take<Stored>()); });
}

}  // namespace

GgufCursor::GgufCursor(Read read, uint64_t file_size)
    : read_(std::move(read)), file_size_(file_size), end_(std::min(file_size, kMaxHeaderBytes)) {}

void GgufCursor::take(std::span<std::byte> out) {
  if (out.size() > remaining()) {
    throw std::invalid_argument(
        file_size_ > end_ ? text("metadata and tensor descriptions exceed ", end_, " bytes.")
                          : text("the file ends inside its header, at byte ", file_size_, "."));
  }
  while (!out.empty()) {
    if (position_ >= buffer_begin_ + buffer_.size()) refill();
    size_t at = position_ - buffer_begin_;
    size_t count = std::min(out.size(), buffer_.size() - at);
    std::memcpy(out.data(), buffer_.data() + at, count);
    out = out.subspan(count);
    position_ += count;
  }
}

void GgufCursor::refill() {
  buffer_begin_ = position_;
  buffer_.resize(std::min(kBufferBytes, remaining()));
  read_(buffer_begin_, buffer_);
}

bool GgufCursor::take_bool() {
  auto byte = take<uint8_t>();
  if (byte > 1) throw std::invalid_argument(text("a boolean must be 0 or 1 but is ", +byte, "."));
  return byte == 1;
}

std::string GgufCursor::take_string(const char* what, uint64_t max_bytes) {
  auto length = take<uint64_t>();
  uint64_t possible = std::min(max_bytes, remaining());
  if (length > possible) {
    throw std::invalid_argument(
        text(what, " claims ", length, " bytes; at most ", possible, " are possible."));
  }
  std::string value(length, '\0');
  take(std::as_writable_bytes(std::span(value)));
  if (valid_utf8_prefix(value) != value.size()) {
    throw std::invalid_argument(text(what, " is not valid UTF-8: \"", printable(value), "\"."));
  }
  return value;
}

uint64_t GgufCursor::take_count(const char* what, uint64_t min_bytes, uint64_t max_count) {
  auto count = take<uint64_t>();
  if (count > remaining() / min_bytes) {
    throw std::invalid_argument(
        text("the file claims ", count, " ", what, " but only ", remaining(), " bytes follow."));
  }
  if (count > max_count) {
    throw std::invalid_argument(
        text("the file claims ", count, " ", what, "; at most ", max_count, " are allowed."));
  }
  return count;
}

GgufArray GgufCursor::take_array() {
  static constexpr uint64_t kElementBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 1, 8, 8, 8};
  auto number = take<uint32_t>();
  auto kind = static_cast<ValueKind>(number);
  if (number >= std::size(kElementBytes) || kind == ValueKind::kArray) {
    throw std::invalid_argument(text("array element kind ", number, " is not supported."));
  }
  uint64_t length = take_count("array elements", kElementBytes[number]);
  if (length > array_elements_left_) {
    throw std::invalid_argument(text("with this array of ", length, " elements the arrays exceed ",
                                     kMaxArrayElements, " elements in all."));
  }
  array_elements_left_ -= length;
  switch (kind) {
    case ValueKind::kUint8:
      return take_numbers<uint64_t, uint8_t>(*this, length);
    case ValueKind::kInt8:
      return take_numbers<int64_t, int8_t>(*this, length);
    case ValueKind::kUint16:
      return take_numbers<uint64_t, uint16_t>(*this, length);
    case ValueKind::kInt16:
      return take_numbers<int64_t, int16_t>(*this, length);
    case ValueKind::kUint32:
      return take_numbers<uint64_t, uint32_t>(*this, length);
    case ValueKind::kInt32:
      return take_numbers<int64_t, int32_t>(*this, length);
    case ValueKind::kUint64:
      return take_numbers<uint64_t, uint64_t>(*this, length);
    case ValueKind::kInt64:
      return take_numbers<int64_t, int64_t>(*this, length);
    case ValueKind::kFloat32:
      return take_numbers<float, float>(*this, length);
    case ValueKind::kFloat64:
      return take_numbers<double, double>(*this, length);
    case ValueKind::kBool:
      return take_elements<bool>(length, [this] { return take_bool(); });
    default:
      return take_elements<std::string>(
          length, [this] { return take_string("a string", kMaxHeaderBytes); });
  }
}

GgufValue GgufCursor::take_value() {
  auto kind = take<uint32_t>();
  switch (static_cast<ValueKind>(kind)) {
    case ValueKind::kUint8:
      return uint64_t{take<uint8_t>()};
    case ValueKind::kInt8:
      return int64_t{take<int8_t>()};
    case ValueKind::kUint16:
      return uint64_t{take<uint16_t>()};
    case ValueKind::kInt16:
      return int64_t{take<int16_t>()};
    case ValueKind::kUint32:
      return uint64_t{take<uint32_t>()};
    case ValueKind::kInt32:
      return int64_t{take<int32_t>()};
    case ValueKind::kUint64:
      return take<uint64_t>();
    case ValueKind::kInt64:
      return take<int64_t>();
    case ValueKind::kFloat32:
      return take<float>();
    case ValueKind::kFloat64:
      return take<double>();
    case ValueKind::kBool:
      return take_bool();
    case ValueKind::kString:
      return take_string("a string", kMaxHeaderBytes);
    case ValueKind::kArray:
      return take_array();
  }
  throw std::invalid_argument(text("value kind ", kind, " is unknown."));
}

}  // namespace vllm_metal
