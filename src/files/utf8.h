// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace vllm_metal {

// How many of the first bytes of `text` are well-formed UTF-8 (Unicode 15, table 3-7: no
// overlong forms, no surrogates, nothing above U+10FFFF); text.size() when all are.
size_t valid_utf8_prefix(std::string_view text);

// Appends the UTF-8 form of a code point that is no surrogate and at most 0x10FFFF.
void append_code_point(uint32_t code, std::string& out);

// `text` fit for one line of an error message: control characters and bytes that are not UTF-8
// become '?', and what is longer than 80 bytes is cut.
std::string printable(std::string_view text);

}  // namespace vllm_metal
