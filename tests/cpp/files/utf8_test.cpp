// SPDX-License-Identifier: Apache-2.0
#include "files/utf8.h"

#include <gtest/gtest.h>

namespace vllm_metal {
namespace {

TEST(Utf8, AcceptsEveryCodePointAndNoSurrogate) {
  for (uint32_t code = 0; code <= 0x10ffff; ++code) {
    std::string encoded;
    append_code_point(code, encoded);
    bool surrogate = code >= 0xd800 && code <= 0xdfff;
    ASSERT_EQ(valid_utf8_prefix(encoded), surrogate ? 0 : encoded.size()) << code;
  }
}

TEST(Utf8, FindsTheFirstBadByte) {
  EXPECT_EQ(valid_utf8_prefix("abc\xff"), 3u);
  EXPECT_EQ(valid_utf8_prefix("é\xe2\x82"), 2u);
  EXPECT_EQ(valid_utf8_prefix("\xc0\x80"), 0u);
  EXPECT_EQ(valid_utf8_prefix("\xc1\xbf"), 0u);
  EXPECT_EQ(valid_utf8_prefix("\xf5\x80\x80\x80"), 0u);
}

TEST(Utf8, MakesTextFitForMessages) {
  EXPECT_EQ(printable("model.é"), "model.é");
  EXPECT_EQ(printable(std::string_view("a\n\x1b[31m\0\xff\x7f", 10)), "a??[31m???");
  EXPECT_EQ(printable(std::string(100, 'x')), std::string(80, 'x') + "...");
}

}  // namespace
}  // namespace vllm_metal
