// SPDX-License-Identifier: Apache-2.0
#include "files/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "gguf_builder.h"
#include "temporary_directory.h"

namespace vllm_metal {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

GgufHeader parse(const std::string& file) {
  return parse_gguf_header(std::as_bytes(std::span(file)), "x.gguf");
}

void expect_error(const std::string& file, const std::string& message) {
  EXPECT_THAT([&] { parse(file); }, ThrowsMessage<std::invalid_argument>(
                                        AllOf(HasSubstr("[gguf] x.gguf: "), HasSubstr(message))));
}

template <typename T>
std::string array_of(uint32_t kind, const std::vector<T>& values) {
  std::string out = GgufBuilder::bytes(kind) + GgufBuilder::bytes<uint64_t>(values.size());
  for (T value : values) out += GgufBuilder::bytes(value);
  return out;
}

TEST(Gguf, ReadsEveryKindOfValue) {
  GgufBuilder file;
  file.add("u8", 0, GgufBuilder::bytes<uint8_t>(200));
  file.add("i8", 1, GgufBuilder::bytes<int8_t>(-100));
  file.add("u16", 2, GgufBuilder::bytes<uint16_t>(60000));
  file.add("i16", 3, GgufBuilder::bytes<int16_t>(-30000));
  file.add("u32", 4, GgufBuilder::bytes<uint32_t>(4000000000));
  file.add("i32", 5, GgufBuilder::bytes<int32_t>(-2000000000));
  file.add("f32", 6, GgufBuilder::bytes<float>(1e-5f));
  file.add("bool", 7, GgufBuilder::bytes<uint8_t>(1));
  file.add("string", 8, GgufBuilder::string("Ġhé"));
  file.add("u64", 10, GgufBuilder::bytes<uint64_t>(UINT64_MAX));
  file.add("i64", 11, GgufBuilder::bytes<int64_t>(INT64_MIN));
  file.add("f64", 12, GgufBuilder::bytes<double>(0.1));
  auto metadata = parse(file.build()).metadata;
  EXPECT_EQ(metadata.at("u8"), GgufValue(uint64_t{200}));
  EXPECT_EQ(metadata.at("i8"), GgufValue(int64_t{-100}));
  EXPECT_EQ(metadata.at("u16"), GgufValue(uint64_t{60000}));
  EXPECT_EQ(metadata.at("i16"), GgufValue(int64_t{-30000}));
  EXPECT_EQ(metadata.at("u32"), GgufValue(uint64_t{4000000000}));
  EXPECT_EQ(metadata.at("i32"), GgufValue(int64_t{-2000000000}));
  EXPECT_EQ(metadata.at("f32"), GgufValue(1e-5f));
  EXPECT_EQ(metadata.at("bool"), GgufValue(true));
  EXPECT_EQ(metadata.at("string"), GgufValue(std::string("Ġhé")));
  EXPECT_EQ(metadata.at("u64"), GgufValue(UINT64_MAX));
  EXPECT_EQ(metadata.at("i64"), GgufValue(INT64_MIN));
  EXPECT_EQ(metadata.at("f64"), GgufValue(0.1));
}

TEST(Gguf, ReadsArrays) {
  GgufBuilder file;
  file.add("i32", 9, array_of<int32_t>(5, {1, -2, 3}));
  file.add("u8", 9, array_of<uint8_t>(0, {1, 255}));
  file.add("f32", 9, array_of<float>(6, {0.5f}));
  file.add("bool", 9, array_of<uint8_t>(7, {1, 0}));
  file.add("empty", 9, array_of<uint8_t>(8, {}));
  std::string strings = GgufBuilder::bytes<uint32_t>(8) + GgufBuilder::bytes<uint64_t>(2) +
                        GgufBuilder::string("a") + GgufBuilder::string("");
  file.add("strings", 9, strings);
  auto metadata = parse(file.build()).metadata;
  auto array = [&](const char* key) { return std::get<GgufArray>(metadata.at(key)); };
  EXPECT_EQ(array("i32"), GgufArray(std::vector<int64_t>{1, -2, 3}));
  EXPECT_EQ(array("u8"), GgufArray(std::vector<uint64_t>{1, 255}));
  EXPECT_EQ(array("f32"), GgufArray(std::vector<float>{0.5f}));
  EXPECT_EQ(array("bool"), GgufArray(std::vector<bool>{true, false}));
  EXPECT_EQ(array("empty"), GgufArray(std::vector<std::string>{}));
  EXPECT_EQ(array("strings"), GgufArray(std::vector<std::string>{"a", ""}));
}

TEST(Gguf, ReadsTensors) {
  GgufBuilder file;
  file.alignment = 64;
  file.add_u32("general.alignment", 64);
  file.add_tensor("a", {64, 3}, GgmlType::kQ4_1, std::string(3 * 2 * 20, 'a'));
  file.add_tensor("b", {5}, GgmlType::kF32, std::string(20, 'b'));
  const std::string content = file.build();
  GgufHeader header = parse(content);
  ASSERT_EQ(header.tensors.size(), 2u);
  EXPECT_THAT(header.tensors[0].shape, ElementsAre(3, 64));
  EXPECT_EQ(header.tensors[0].row_bytes(), 40u);
  EXPECT_EQ(header.tensors[0].nbytes, 120u);
  EXPECT_EQ(header.tensors[0].offset % 64, 0u);
  EXPECT_EQ(header.tensors[1].nbytes, 20u);
  EXPECT_EQ(content.substr(header.tensors[1].offset, 20), std::string(20, 'b'));
}

TEST(Gguf, ReadsVersion2AndRefusesOthers) {
  GgufBuilder file;
  file.version = 2;
  EXPECT_NO_THROW(parse(file.build()));
  file.version = 1;
  expect_error(file.build(), "version must be 2 or 3 but is 1");
  file.version = 0x03000000;
  expect_error(file.build(), "big-endian");
  expect_error("GGML" + file.build(), "no GGUF file");
  expect_error("", "ends inside its header");
}

TEST(Gguf, RefusesAFileCutAnywhere) {
  GgufBuilder file;
  file.add_string("key", "value");
  file.add("array", 9, array_of<int32_t>(5, {1, 2, 3}));
  file.add_tensor("a", {32, 2}, GgmlType::kQ8_0, std::string(68, 'x'));
  std::string content = file.build();
  // Padding after the last tensor may be absent.
  content.resize(parse(content).tensors[0].offset + 68);
  EXPECT_NO_THROW(parse(content));
  for (size_t size = 0; size < content.size(); ++size) {
    EXPECT_THROW(parse(content.substr(0, size)), std::invalid_argument) << size;
  }
}

TEST(Gguf, RefusesHostileCounts) {
  const std::string head = "GGUF" + GgufBuilder::bytes<uint32_t>(3);
  const auto huge = GgufBuilder::bytes(UINT64_MAX);
  const auto zero = GgufBuilder::bytes<uint64_t>(0);
  expect_error(head + huge + zero, "claims 18446744073709551615 tensors");
  expect_error(head + zero + huge, "claims 18446744073709551615 metadata values");
  GgufBuilder file;
  file.add("key", 8, huge);
  expect_error(file.build(), "a string claims 18446744073709551615 bytes");
  file = {};
  file.add("key", 9, GgufBuilder::bytes<uint32_t>(10) + huge);
  expect_error(file.build(), "claims 18446744073709551615 array elements");
  file = {};
  file.add(std::string(70000, 'k'), 0, "x");
  expect_error(file.build(), "a metadata key claims 70000 bytes; at most 65535");
}

TEST(Gguf, RefusesHugeArrays) {
  GgufBuilder file;
  file.add("key", 9, array_of(0, std::vector<uint8_t>((1 << 24) + 1)));
  expect_error(file.build(), "16777217 elements the arrays exceed 16777216");
}

// A file of zeros costs no disk; its elements would take many times its size.
TEST(Gguf, RefusesHugeArraysOfSeveral) {
  GgufBuilder file;
  for (const char* key : {"first", "second"})
    file.add(key, 9, array_of(0, std::vector<uint8_t>((1 << 23) + 1)));
  expect_error(file.build(), "metadata key \"second\": with this array of 8388609 elements");
}

TEST(Gguf, RefusesCountsThatTheFileCouldHold) {
  const std::string head = "GGUF" + GgufBuilder::bytes<uint32_t>(3);
  const std::string zeros(40'000'000, '\0');
  const auto none = GgufBuilder::bytes<uint64_t>(0), many = GgufBuilder::bytes<uint64_t>(1'000'001);
  expect_error(head + many + none + zeros, "claims 1000001 tensors; at most 1000000 are allowed");
  expect_error(head + none + many + zeros, "1000001 metadata values; at most 100000 are allowed");
}

// A hole of 100 GB is no header: what describes a model has its own limit.
TEST(Gguf, RefusesHeadersThatAreTooLarge) {
  TemporaryDirectory dir;
  const auto error_of_key = [&](uint64_t length) {
    write_file(dir / "sparse.gguf",
               "GGUF" + GgufBuilder::bytes<uint32_t>(3) + GgufBuilder::bytes<uint64_t>(0) +
                   GgufBuilder::bytes<uint64_t>(2) + GgufBuilder::bytes<uint64_t>(length));
    std::filesystem::resize_file(dir / "sparse.gguf", 100'000'000'000);
    return [&dir] { read_gguf_header(InputFile(dir / "sparse.gguf")); };
  };
  EXPECT_THAT(error_of_key(300'000'000),
              ThrowsMessage<std::invalid_argument>(
                  AllOf(HasSubstr("sparse.gguf"), HasSubstr("claims 300000000 bytes; at most"))));
}

TEST(Gguf, RefusesBadMetadata) {
  GgufBuilder file;
  file.add("key", 13, "");
  file.add("next", 0, "xxxxxxxx");
  expect_error(file.build(), "metadata key \"key\": value kind 13 is unknown");
  file = {};
  file.add("key", 7, "\x02");
  expect_error(file.build(), "a boolean must be 0 or 1 but is 2");
  file = {};
  file.add("key", 8, GgufBuilder::string("\xff"));
  expect_error(file.build(), "not valid UTF-8");
  file = {};
  file.add("key", 9, array_of<uint32_t>(9, {5, 0, 0, 0}));
  expect_error(file.build(), "array element kind 9 is not supported");
  file = {};
  file.add_u32("key", 1);
  file.add_u32("key", 1);
  expect_error(file.build(), "metadata key \"key\": it appears twice");
}

TEST(Gguf, RefusesBadAlignment) {
  for (uint32_t alignment : {0u, 4u, 24u, 1u << 17}) {
    GgufBuilder file;
    file.add_u32("general.alignment", alignment);
    expect_error(file.build(), "general.alignment must be a power of two");
  }
  GgufBuilder file;
  file.add_string("general.alignment", "32");
  expect_error(file.build(), "general.alignment must be a power of two");
}

TEST(Gguf, RefusesBadTensors) {
  auto error_of = [](std::vector<uint64_t> dimensions, uint32_t type, const std::string& message) {
    GgufBuilder file;
    file.tensors.push_back({"t", std::move(dimensions), type, std::string(4096, '\0')});
    expect_error(file.build(), "tensor \"t\"" + message);
  };
  error_of({}, 0, ": it has 0 dimensions");
  error_of({1, 1, 1, 1, 1}, 0, ": it has 5 dimensions");
  error_of({0}, 0, ": extent 0 is out of range");
  error_of({uint64_t{1} << 31}, 0, ": extent 2147483648 is out of range");
  error_of({INT32_MAX, INT32_MAX, INT32_MAX, 4}, 0,
           ": shape [4, 2147483647, 2147483647, 2147483647]");
  error_of({33}, 2, ": its rows have 33 elements, not a multiple of 32 as Q4_0 needs");
  error_of({256}, 12, ": type Q4_K (12) is not supported; allowed are F32, F16, Q4_0, Q4_1, Q8_0");
  error_of({256}, 4, ": type unknown (4) is not supported");
  error_of({256}, 99, ": type unknown (99) is not supported");
  error_of({4096}, 0, " needs 16384 bytes at offset 0 but the file has only 4096");
}

TEST(Gguf, RefusesBadPlaces) {
  auto file_with_offset = [](uint64_t offset) {
    GgufBuilder file;
    file.add_tensor("a", {16}, GgmlType::kF32, std::string(64, '\0'));
    file.add_tensor("b", {16}, GgmlType::kF32, std::string(64, '\0'));
    file.tensors[1].offset = offset;
    return file.build();
  };
  EXPECT_NO_THROW(parse(file_with_offset(64)));
  expect_error(file_with_offset(32), "tensors \"a\" and \"b\" overlap");
  expect_error(file_with_offset(0), "overlap");
  expect_error(file_with_offset(65), "offset 65 is no multiple of the alignment, 32");
  expect_error(file_with_offset(96), "needs 64 bytes at offset 96");
  expect_error(file_with_offset(UINT64_MAX - 31), "needs 64 bytes at offset");
  GgufBuilder twice;
  twice.add_tensor("a", {1}, GgmlType::kF32, "1234");
  twice.add_tensor("a", {1}, GgmlType::kF32, "1234");
  expect_error(twice.build(), "tensor \"a\" appears twice");
}

TEST(Gguf, ReadsFromDiskLikeFromMemory) {
  GgufBuilder file;
  // Longer than the buffer, so that values cross its ends.
  std::vector<std::string> words;
  std::string strings = GgufBuilder::bytes<uint32_t>(8) + GgufBuilder::bytes<uint64_t>(30000);
  for (int i = 0; i < 30000; ++i) {
    words.push_back("word" + std::to_string(i));
    strings += GgufBuilder::string(words.back());
  }
  file.add("words", 9, strings);
  file.add_tensor("a", {32}, GgmlType::kQ4_0, std::string(18, 'q'));
  TemporaryDirectory dir;
  write_file(dir / "x.gguf", file.build());
  GgufHeader header = read_gguf_header(InputFile(dir / "x.gguf"));
  EXPECT_EQ(std::get<GgufArray>(header.metadata.at("words")), GgufArray(words));
  EXPECT_EQ(header.tensors[0].offset, parse(file.build()).tensors[0].offset);
}

}  // namespace
}  // namespace vllm_metal
