// SPDX-License-Identifier: Apache-2.0
#include "files/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <clocale>
#include <cmath>
#include <limits>
#include <string>

namespace vllm_metal {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

std::string nested(int depth) {
  return std::string(static_cast<size_t>(depth), '[') +
         std::string(static_cast<size_t>(depth), ']');
}

void expect_error(const std::string& text, const std::string& message) {
  EXPECT_THAT([&] { Json::parse(text); }, ThrowsMessage<std::invalid_argument>(HasSubstr(message)))
      << text;
}

TEST(Json, ReadsEveryKind) {
  Json json = Json::parse(R"( {"a": [null, true, false, -7, 2.5, "x"], "b": {}} )");
  const Json::Array& items = json.at("a").as_array();
  ASSERT_EQ(items.size(), 6u);
  EXPECT_TRUE(items[0].is_null());
  EXPECT_TRUE(items[1].as_bool());
  EXPECT_FALSE(items[2].as_bool());
  EXPECT_EQ(items[3].as_int(), -7);
  EXPECT_EQ(items[4].as_double(), 2.5);
  EXPECT_EQ(items[5].as_string(), "x");
  EXPECT_TRUE(json.at("b").as_object().empty());
  EXPECT_EQ(json.find("c"), nullptr);
}

TEST(Json, KeepsTheOrderOfKeys) {
  Json json = Json::parse(R"({"z": 1, "a": 2, "m": 3})");
  std::string order;
  for (const auto& [key, value] : json.as_object()) order += key;
  EXPECT_EQ(order, "zam");
}

TEST(Json, KeepsIntegersExact) {
  EXPECT_EQ(Json::parse("9223372036854775807").as_int(), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(Json::parse("-9223372036854775808").as_int(), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(Json::parse("9007199254740993").as_int(), 9007199254740993);
  EXPECT_EQ(Json::parse("-0").as_int(), 0);
}

TEST(Json, TakesRealsWithoutFractionAsIntegers) {
  EXPECT_EQ(Json::parse("1e5").as_int(), 100000);
  EXPECT_EQ(Json::parse("10000.0").as_int(), 10000);
  EXPECT_THROW(Json::parse("0.5").as_int(), std::invalid_argument);
  EXPECT_THROW(Json::parse("1e19").as_int(), std::invalid_argument);
  EXPECT_THROW(Json::parse("NaN").as_int(), std::invalid_argument);
}

TEST(Json, ReadsAnIntegerBeyond64BitsAsTheNearestReal) {
  // What tokenizers write as model_max_length.
  Json json = Json::parse("1000000000000000019884624838656");
  EXPECT_FALSE(json.is_int());
  EXPECT_EQ(json.as_double(), 1e30);
}

TEST(Json, RoundsRealsCorrectly) {
  EXPECT_EQ(Json::parse("0.1").as_double(), 0.1);
  EXPECT_EQ(Json::parse("9.999999747378752e-06").as_double(), 9.999999747378752e-06);
  EXPECT_EQ(Json::parse("4.9e-324").as_double(), std::numeric_limits<double>::denorm_min());
  EXPECT_EQ(Json::parse("1e-999").as_double(), 0.0);
  EXPECT_TRUE(std::signbit(Json::parse("-0.0").as_double()));
  expect_error("1e999", "too large");
}

TEST(Json, ReadsRealsWhateverTheLocale) {
  const std::string before = std::setlocale(LC_NUMERIC, nullptr);
  if (!std::setlocale(LC_NUMERIC, "de_DE.UTF-8")) GTEST_SKIP() << "no locale with decimal comma";
  double value = Json::parse("2.5").as_double();
  std::string text = Json(2.5).dump();
  std::setlocale(LC_NUMERIC, before.c_str());
  EXPECT_EQ(value, 2.5);
  EXPECT_EQ(text, "2.5");
}

TEST(Json, AcceptsWhatPythonWritesForNonFiniteNumbers) {
  EXPECT_TRUE(std::isnan(Json::parse("NaN").as_double()));
  EXPECT_EQ(Json::parse("Infinity").as_double(), std::numeric_limits<double>::infinity());
  EXPECT_EQ(Json::parse("-Infinity").as_double(), -std::numeric_limits<double>::infinity());
}

TEST(Json, ReadsEscapes) {
  EXPECT_EQ(Json::parse(R"("\"\\\/\b\f\n\r\t")").as_string(), "\"\\/\b\f\n\r\t");
  EXPECT_EQ(Json::parse(R"("\u0041\u00e9\u20AC\ud83d\ude00")").as_string(), "Aé€😀");
  EXPECT_EQ(Json::parse(R"("\u0000")").as_string(), std::string(1, '\0'));
  EXPECT_EQ(Json::parse("\"é€😀\"").as_string(), "é€😀");
}

TEST(Json, RefusesBadStrings) {
  expect_error(R"("\ud800")", "half of a surrogate pair");
  expect_error(R"("\ud800\u0041")", "half of a surrogate pair");
  expect_error(R"("\udc00")", "half of a surrogate pair");
  expect_error(R"("\u12")", "four hexadecimal digits");
  expect_error(R"("\u12g4")", "four hexadecimal digits");
  expect_error(R"("\u-123")", "four hexadecimal digits");
  expect_error(R"("\x41")", "unknown escape");
  expect_error("\"a\nb\"", "control character");
  expect_error("\"abc", "not closed");
  expect_error("\"abc\\", "unknown escape");
  for (const char* bad : {"\x80", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                          "\xf0\x8f\xbf\xbf", "\xff", "\xe2\x82", "\xc3"}) {
    expect_error(std::string("\"") + bad + "\"", "not valid UTF-8");
  }
}

TEST(Json, RefusesWhatIsNotJson) {
  for (const char* bad : {"",         " ",          "{",
                          "[",        "[1",         "[1,",
                          "[1,]",     "[,1]",       "{\"a\"}",
                          "{\"a\":}", "{\"a\":1,}", "{a:1}",
                          "{1:2}",    "nul",        "tru",
                          "+1",       "01",         "-",
                          "-x",       "1.",         ".5",
                          "1e",       "1e+",        "0x10",
                          "'a'",      "[1 2]",      "{\"a\" 1}",
                          "-Infinit", "-NaN",       "1 2",
                          "[] []",    "//x",        "\xef\xbb\xbf{}"}) {
    EXPECT_THROW(Json::parse(bad), std::invalid_argument) << bad;
  }
}

TEST(Json, NamesLineAndColumn) {
  expect_error("{\n  \"a\": 1,\n  \"b\" 2\n}", "line 3, column 7: expected ':' but found '2'.");
  expect_error("[1, 2] x", "line 1, column 8: expected the end of the text but found 'x'.");
  expect_error("{\"a\": 1, \n \"a\": 2}", "line 2, column 2: key \"a\" appears twice.");
  expect_error("[1,", "line 1, column 4: expected a value but found the end of the text.");
  expect_error(std::string("[\x01]"), "byte 0x01");
}

TEST(Json, RefusesDuplicateKeysAtAnyDepth) {
  expect_error(R"({"x": [{"a": 1, "b": 2, "\u0061": 3}]})", "key \"a\" appears twice");
  EXPECT_NO_THROW(Json::parse(R"({"a": {"a": 1}, "b": {"a": 1}})"));
}

TEST(Json, LimitsDepth) {
  EXPECT_NO_THROW(Json::parse(nested(Json::kMaxDepth)));
  expect_error(nested(Json::kMaxDepth + 1), "nested deeper than 64");
  expect_error(std::string(1 << 20, '['), "nested deeper than 64");
  expect_error(std::string(1 << 20, '{'), "expected a key");
}

TEST(Json, ReadsAHugeObjectInLittleTime) {
  std::string text = "{";
  for (int i = 0; i < 200000; ++i) text += "\"key" + std::to_string(i) + "\":0,";
  EXPECT_EQ(Json::parse(text + "\"last\":1}").as_object().size(), 200001u);
  expect_error(text + "\"key7\":1}", "key \"key7\" appears twice");
}

TEST(Json, LimitsTheNumberOfValues) {
  std::string text = "[0";
  for (int i = 0; i < 10'000'000; ++i) text += ",0";
  expect_error(text + "]", "more than 10000000 values");
}

TEST(Json, DumpsWhatReadsBackEqual) {
  for (const char* text :
       {"null", "true", "[]", "{}", R"({"b":1,"a":[1.5,-2,"x\n\"\\\u0001é"],"c":{"d":null}})",
        "[0.1,1e-05,1e+300,100000.0,-0.0,9007199254740993]"}) {
    Json json = Json::parse(text);
    EXPECT_EQ(Json::parse(json.dump()), json) << json.dump();
  }
  EXPECT_EQ(Json(10.0).dump(), "10.0");
  EXPECT_EQ(Json(100000.0).dump(), "1e+05");
  EXPECT_EQ(Json::parse("[NaN,Infinity,-Infinity]").dump(), "[NaN,Infinity,-Infinity]");
  EXPECT_EQ(Json(std::string("a\x01\t")).dump(), "\"a\\u0001\\t\"");
}

TEST(Json, NamesWantedAndFoundType) {
  const Json number = Json::parse("1");
  auto message = [](auto read) { return ThrowsMessage<std::invalid_argument>(HasSubstr(read)); };
  EXPECT_THAT([&] { number.as_string(); }, message("expected a string but found an integer"));
  EXPECT_THAT([&] { number.find("x"); }, message("expected an object but found an integer"));
  EXPECT_THAT([&] { Json().as_array(); }, message("expected an array but found null"));
  EXPECT_THAT([&] { Json(true).as_int(); }, message("expected an integer but found a boolean"));
  EXPECT_THAT([&] { Json(2.0).as_bool(); }, message("expected a boolean but found a number"));
  EXPECT_THAT([&] { Json::parse("{}").at("key"); }, message("key \"key\" is missing"));
}

}  // namespace
}  // namespace vllm_metal
