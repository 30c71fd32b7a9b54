// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sstream>
#include <string>
#include <vector>

namespace vllm_metal {

// Concatenates its arguments as `<<` prints them; the way error messages are built.
template <typename... Args>
std::string text(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

// "a, b, c" for any range of printable values.
template <typename Range>
std::string join(const Range& values, const char* separator = ", ") {
  std::ostringstream out;
  bool first = true;
  for (const auto& value : values) {
    if (!first) out << separator;
    out << value;
    first = false;
  }
  return out.str();
}

}  // namespace vllm_metal
