// SPDX-License-Identifier: Apache-2.0
#include "files/utf8.h"

namespace vllm_metal {

namespace {

// Length of the well-formed sequence at `at`; 0 when there is none.
size_t sequence_length(std::string_view text, size_t at) {
  auto byte = [&](size_t i) -> unsigned {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  auto continues = [&](size_t i) { return (byte(i) & 0xc0) == 0x80; };
  unsigned first = byte(at);
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return continues(at + 1) ? 2 : 0;
  // The second byte's range rules out overlong forms, surrogates and what exceeds U+10FFFF.
  unsigned lowest = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
  unsigned highest = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
  if (byte(at + 1) < lowest || byte(at + 1) > highest) return 0;
  if (first >= 0xe0 && first <= 0xef) return continues(at + 2) ? 3 : 0;
  if (first >= 0xf0 && first <= 0xf4) return continues(at + 2) && continues(at + 3) ? 4 : 0;
  return 0;
}

}  // namespace

size_t valid_utf8_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    size_t length = sequence_length(text, at);
    if (length == 0) return at;
    at += length;
  }
  return at;
}

void append_code_point(uint32_t code, std::string& out) {
  auto continuation = [&](int shift) { out += static_cast<char>(0x80 | ((code >> shift) & 0x3f)); };
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xc0 | (code >> 6));
    continuation(0);
  } else if (code < 0x10000) {
    out += static_cast<char>(0xe0 | (code >> 12));
    continuation(6);
    continuation(0);
  } else {
    out += static_cast<char>(0xf0 | (code >> 18));
    continuation(12);
    continuation(6);
    continuation(0);
  }
}

std::string printable(std::string_view text) {
  constexpr size_t kMaxBytes = 80;
  std::string out;
  size_t at = 0;
  while (at < text.size()) {
    size_t length = sequence_length(text, at);
    if (out.size() + length > kMaxBytes) return out + "...";
    bool plain = length > 1 || (length == 1 && text[at] >= 0x20 && text[at] != 0x7f);
    if (plain) {
      out += text.substr(at, length);
    } else {
      out += '?';
    }
    at += length == 0 ? 1 : length;
  }
  return out;
}

}  // namespace vllm_metal
