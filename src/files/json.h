// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace vllm_metal {

// A parsed JSON value (RFC 8259), immutable. Made for untrusted files: bounded depth, duplicate
// keys are an error, integers stay exact, and every accessor that finds another type than
// asked for throws std::invalid_argument naming what it found.
class Json {
 public:
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;
  using Object = std::vector<Member>;  // in file order

  static constexpr int kMaxDepth = 64;

  Json() = default;  // null
  explicit Json(bool value) : value_(value) {}
  explicit Json(int64_t value) : value_(value) {}
  explicit Json(double value) : value_(value) {}
  explicit Json(std::string value) : value_(std::move(value)) {}
  explicit Json(Array value) : value_(std::move(value)) {}
  explicit Json(Object value) : value_(std::move(value)) {}

  // Throws std::invalid_argument with line and column. Accepts the NaN and Infinity that
  // Python's json writes, since Hugging Face configs hold them. An integer beyond 64 bits becomes
  // the nearest real; strings must be UTF-8.
  static Json parse(std::string_view text);

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  bool is_int() const { return std::holds_alternative<int64_t>(value_); }
  bool is_number() const { return is_int() || std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }

  bool as_bool() const;
  int64_t as_int() const;    // also a real without fraction, as Python writes 1e5
  double as_double() const;  // any number
  const std::string& as_string() const;
  const Array& as_array() const;
  const Object& as_object() const;

  // The member of that name; null pointer if absent. Throws if this is no object.
  const Json* find(std::string_view key) const;
  // As find, but absent is an error that names the key.
  const Json& at(std::string_view key) const;

  // Compact JSON text, keys in their order; numbers read back equal.
  std::string dump() const;

  friend bool operator==(const Json&, const Json&) = default;

 private:
  const char* type_name() const;
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> value_;
};

}  // namespace vllm_metal
