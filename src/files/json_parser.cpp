// SPDX-License-Identifier: Apache-2.0
#include <locale.h>
#if __has_include(<xlocale.h>)
#include <xlocale.h>
#endif

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "common/text.h"
#include "files/json.h"
#include "files/utf8.h"

namespace vllm_metal {

namespace {

// A value takes about twenty times the memory of the shortest text for one; this bounds what a
// hostile file can claim (400 MB) and is far above any real configuration or tensor index.
constexpr size_t kMaxNodes = 10'000'000;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// std::from_chars for doubles needs macOS 26, and std::strtod follows the program's locale.
double parse_double(const std::string& digits) {
  static const locale_t c_locale = newlocale(LC_ALL_MASK, "C", nullptr);
  return strtod_l(digits.c_str(), nullptr, c_locale);
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json document() {
    if (text_.starts_with("\xef\xbb\xbf")) fail("a byte order mark is not allowed");
    skip_space();
    Json value = parse_value(0);
    skip_space();
    if (position_ != text_.size()) fail("expected the end of the text but found " + found());
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { fail_at(position_, what); }

  [[noreturn]] void fail_at(size_t position, const std::string& what) const {
    std::string_view before = text_.substr(0, position);
    auto line = std::count(before.begin(), before.end(), '\n') + 1;
    size_t newline = before.rfind('\n');
    size_t column = newline == std::string_view::npos ? position + 1 : position - newline;
    throw std::invalid_argument(text("[json] line ", line, ", column ", column, ": ", what, "."));
  }

  // The character here, in words fit for a message.
  std::string found() const {
    if (position_ >= text_.size()) return "the end of the text";
    auto byte = static_cast<unsigned char>(text_[position_]);
    if (byte > 0x20 && byte < 0x7f) return text("'", text_[position_], "'");
    static constexpr char kHex[] = "0123456789abcdef";
    return text("byte 0x", kHex[byte >> 4], kHex[byte & 15]);
  }

  char peek() const { return position_ < text_.size() ? text_[position_] : '\0'; }

  bool accept(char c) {
    if (position_ >= text_.size() || text_[position_] != c) return false;
    ++position_;
    return true;
  }

  bool accept(std::string_view word) {
    if (!text_.substr(position_).starts_with(word)) return false;
    position_ += word.size();
    return true;
  }

  void skip_space() {
    while (position_ < text_.size()) {
      char c = text_[position_];
      if (c != ' ' && c != '\n' && c != '\t' && c != '\r') return;
      ++position_;
    }
  }

  Json parse_value(int depth) {
    if (++nodes_ > kMaxNodes) fail(text("more than ", kMaxNodes, " values"));
    switch (peek()) {
      case '{':
        return parse_object(depth);
      case '[':
        return parse_array(depth);
      case '"':
        return Json(parse_string());
      default:
        return parse_scalar();
    }
  }

  Json parse_scalar() {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    if (is_digit(peek())) return parse_number();
    if (accept("-Infinity")) return Json(-kInfinity);
    if (peek() == '-') return parse_number();
    if (accept("null")) return Json();
    if (accept("true")) return Json(true);
    if (accept("false")) return Json(false);
    if (accept("NaN")) return Json(std::numeric_limits<double>::quiet_NaN());
    if (accept("Infinity")) return Json(kInfinity);
    fail("expected a value but found " + found());
  }

  void enter(int depth) const {
    if (depth >= Json::kMaxDepth) {
      fail(text("arrays and objects are nested deeper than ", Json::kMaxDepth, " levels"));
    }
  }

  Json parse_array(int depth) {
    enter(depth);
    ++position_;
    Json::Array items;
    skip_space();
    if (accept(']')) return Json(std::move(items));
    while (true) {
      skip_space();
      items.push_back(parse_value(depth + 1));
      skip_space();
      if (accept(']')) return Json(std::move(items));
      if (!accept(',')) fail("expected ',' or ']' but found " + found());
    }
  }

  Json parse_object(int depth) {
    enter(depth);
    ++position_;
    Json::Object members;
    std::vector<size_t> key_positions;
    skip_space();
    if (accept('}')) return Json(std::move(members));
    while (true) {
      skip_space();
      if (peek() != '"') fail("expected a key in quotes but found " + found());
      key_positions.push_back(position_);
      std::string key = parse_string();
      skip_space();
      if (!accept(':')) fail("expected ':' but found " + found());
      skip_space();
      Json value = parse_value(depth + 1);
      members.emplace_back(std::move(key), std::move(value));
      skip_space();
      if (accept('}')) break;
      if (!accept(',')) fail("expected ',' or '}' but found " + found());
    }
    check_unique(members, key_positions);
    return Json(std::move(members));
  }

  // By sorting, so that an object of a million keys costs no quadratic time.
  void check_unique(const Json::Object& members, const std::vector<size_t>& key_positions) const {
    std::vector<size_t> order(members.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      int compared = members[a].first.compare(members[b].first);
      return compared != 0 ? compared < 0 : a < b;
    });
    auto same_key = [&](size_t a, size_t b) { return members[a].first == members[b].first; };
    auto duplicate = std::adjacent_find(order.begin(), order.end(), same_key);
    if (duplicate == order.end()) return;
    fail_at(key_positions[duplicate[1]],
            text("key \"", printable(members[*duplicate].first), "\" appears twice"));
  }

  Json parse_number() {
    size_t start = position_;
    bool real = false;
    accept('-');
    if (!accept('0')) digits("a digit");
    if (is_digit(peek())) fail("a number must not begin with 0");
    if (accept('.')) {
      real = true;
      digits("a digit after the decimal point");
    }
    if (accept('e') || accept('E')) {
      real = true;
      if (!accept('+')) accept('-');
      digits("a digit in the exponent");
    }
    std::string_view token = text_.substr(start, position_ - start);
    if (!real) {
      int64_t value = 0;
      auto result = std::from_chars(token.data(), token.data() + token.size(), value);
      if (result.ec == std::errc()) return Json(value);
      // Beyond 64 bits, as in tokenizers' model_max_length of 10^30: the nearest real.
    }
    double value = parse_double(std::string(token));
    if (!std::isfinite(value)) fail_at(start, "a number is too large for a double");
    return Json(value);
  }

  void digits(const char* wanted) {
    if (!is_digit(peek())) fail(text("expected ", wanted, " but found ", found()));
    while (is_digit(peek())) ++position_;
  }

  std::string parse_string() {
    size_t start = position_++;
    std::string out;
    while (true) {
      size_t end = position_;
      while (end < text_.size() && text_[end] != '"' && text_[end] != '\\' &&
             static_cast<unsigned char>(text_[end]) >= 0x20) {
        ++end;
      }
      append_utf8(end, out);
      if (accept('"')) return out;
      if (position_ >= text_.size()) fail_at(start, "a string is not closed");
      if (!accept('\\')) fail("a control character in a string, " + found() + ", must be escaped");
      append_escape(out);
    }
  }

  // Takes the plain characters up to `end`.
  void append_utf8(size_t end, std::string& out) {
    std::string_view run = text_.substr(position_, end - position_);
    size_t valid = valid_utf8_prefix(run);
    if (valid != run.size()) fail_at(position_ + valid, "a string is not valid UTF-8");
    out += run;
    position_ = end;
  }

  void append_escape(std::string& out) {
    size_t start = position_ - 1;
    switch (peek()) {
      case '"':
        out += '"';
        break;
      case '\\':
        out += '\\';
        break;
      case '/':
        out += '/';
        break;
      case 'b':
        out += '\b';
        break;
      case 'f':
        out += '\f';
        break;
      case 'n':
        out += '\n';
        break;
      case 'r':
        out += '\r';
        break;
      case 't':
        out += '\t';
        break;
      case 'u':
        ++position_;
        append_code_point(unicode_escape(start), out);
        return;
      default:
        fail("an unknown escape, backslash and " + found());
    }
    ++position_;
  }

  // After "\u": four hex digits, or the two halves of a surrogate pair.
  uint32_t unicode_escape(size_t start) {
    uint32_t code = hex4();
    if (code < 0xd800 || code > 0xdfff) return code;
    if (code <= 0xdbff && accept("\\u")) {
      uint32_t low = hex4();
      if (low >= 0xdc00 && low <= 0xdfff) return 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    fail_at(start, "an escape is half of a surrogate pair");
  }

  uint32_t hex4() {
    std::string_view digits = text_.substr(std::min(position_, text_.size()), 4);
    uint32_t code = 0;
    auto result = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    if (result.ec != std::errc() || result.ptr != digits.data() + 4) {
      fail("expected four hexadecimal digits after \\u");
    }
    position_ += 4;
    return code;
  }

  std::string_view text_;
  size_t position_ = 0;
  size_t nodes_ = 0;
};

}  // namespace

Json Json::parse(std::string_view text) { return Parser(text).document(); }

}  // namespace vllm_metal
