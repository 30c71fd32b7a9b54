// SPDX-License-Identifier: Apache-2.0
#include "files/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <string>

#include "temporary_directory.h"

namespace vllm_metal {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::ThrowsMessage;

// A file of this header and `data_size` zero bytes.
std::string file_of(const std::string& header, size_t data_size) {
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> (8 * i));
  return file + header + std::string(data_size, '\0');
}

SafetensorsHeader parse(const std::string& file) {
  return parse_safetensors_header(std::as_bytes(std::span(file)), file.size(), "x.safetensors");
}

void expect_error(const std::string& file, const std::string& message) {
  EXPECT_THAT([&] { parse(file); },
              ThrowsMessage<std::invalid_argument>(
                  AllOf(HasSubstr("[safetensors] x.safetensors: "), HasSubstr(message))));
}

std::string tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"a": {"dtype": ")" + dtype + R"(", "shape": )" + shape + R"(, "data_offsets": )" +
         offsets + "}}";
}

TEST(Safetensors, ReadsAHeader) {
  std::string header = R"({"__metadata__": {"format": "mlx"},)"
                       R"("b": {"dtype": "F16", "shape": [2, 3], "data_offsets": [8, 20]},)"
                       R"("a": {"dtype": "U32", "shape": [2], "data_offsets": [0, 8]}}   )";
  SafetensorsHeader parsed = parse(file_of(header, 20));
  EXPECT_THAT(parsed.metadata, ElementsAre(std::pair("format", "mlx")));
  ASSERT_EQ(parsed.tensors.size(), 2u);
  EXPECT_EQ(parsed.tensors[0].name, "a");
  EXPECT_EQ(parsed.tensors[0].dtype, StoredDtype::kU32);
  EXPECT_EQ(parsed.tensors[0].offset, 8 + header.size());
  EXPECT_EQ(parsed.tensors[0].nbytes, 8u);
  EXPECT_EQ(parsed.tensors[1].name, "b");
  EXPECT_THAT(parsed.tensors[1].shape, ElementsAre(2, 3));
  EXPECT_EQ(parsed.tensors[1].offset, 16 + header.size());
}

TEST(Safetensors, ReadsEveryDtype) {
  const std::pair<const char*, size_t> kSizes[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"U16", 2}, {"I16", 2}, {"F16", 2}, {"BF16", 2},
      {"U32", 4},  {"I32", 4}, {"F32", 4}, {"U64", 8}, {"I64", 8}, {"F64", 8}};
  for (auto [name, size] : kSizes) {
    std::string offsets = "[0, " + std::to_string(3 * size) + "]";
    SafetensorsHeader parsed = parse(file_of(tensor(name, "[3]", offsets), 3 * size));
    EXPECT_STREQ(name_of(parsed.tensors[0].dtype), name);
    EXPECT_EQ(size_of(parsed.tensors[0].dtype), size);
  }
}

TEST(Safetensors, AllowsEmptyThings) {
  EXPECT_THAT(parse(file_of("{}", 0)).tensors, IsEmpty());
  EXPECT_THAT(parse(file_of(R"({"__metadata__": {}})", 0)).metadata, IsEmpty());
  EXPECT_THAT(parse(file_of(R"({"__metadata__": null})", 0)).metadata, IsEmpty());
  EXPECT_EQ(parse(file_of(tensor("F32", "[]", "[0, 4]"), 4)).tensors[0].nbytes, 4u);
  EXPECT_EQ(parse(file_of(tensor("F32", "[0, 5]", "[0, 0]"), 0)).tensors[0].nbytes, 0u);
  // An empty tensor shares its offset with the one that follows, whichever is named first.
  std::string both = R"({"b": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},)"
                     R"("e": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})";
  EXPECT_EQ(parse(file_of(both, 2)).tensors[0].name, "e");
}

TEST(Safetensors, RefusesBadLengths) {
  expect_error("", "the file has 0 bytes");
  expect_error("1234567", "the file has 7 bytes");
  expect_error(std::string(8, '\xff'), "at most 100000000 are allowed");
  expect_error(file_of("{}", 0).substr(0, 9), "claims 2 bytes but the file has only 1");
  std::string sparse = file_of("{}", 0);
  EXPECT_THAT(
      [&] {
        parse_safetensors_header(std::as_bytes(std::span(sparse).first(9)), 100, "x.safetensors");
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("only 1 were read")));
}

TEST(Safetensors, RefusesBadHeaders) {
  expect_error(file_of("[]", 0), "expected an object but found an array");
  expect_error(file_of("{", 0), "line 1, column 2");
  expect_error(file_of(R"({"a": 1})", 0), "entry \"a\"");
  expect_error(file_of(R"({"a": {}})", 0), "key \"dtype\" is missing");
  expect_error(file_of(R"({"__metadata__": {"x": 1}})", 0), "expected a string");
  expect_error(file_of(R"({"__metadata__": []})", 0), "expected an object but found an array");
  std::string twice = R"("a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})";
  expect_error(file_of("{" + twice + "," + twice + "}", 0), "key \"a\" appears twice");
}

TEST(Safetensors, RefusesBadTensors) {
  expect_error(file_of(tensor("F8_E4M3", "[1]", "[0, 1]"), 1), "dtype must be one of BOOL, U8");
  expect_error(file_of(tensor("F32", "[-1]", "[0, 4]"), 4), "non-negative integer but got -1");
  expect_error(file_of(tensor("F32", "[1.5]", "[0, 4]"), 4), "non-negative integer but got 1.5");
  expect_error(file_of(tensor("F32", "4", "[0, 4]"), 4), "expected an array");
  expect_error(file_of(tensor("F32", "[2]", "[0, 4]"), 4), "needs 8 bytes but its offsets span 4");
  expect_error(file_of(tensor("F32", "[4294967296, 4294967296]", "[0, 4]"), 4), "out of range");
  expect_error(file_of(tensor("F32", "[4611686018427387904, 4, 0]", "[0, 0]"), 0), "out of range");
  expect_error(file_of(tensor("U8", "[9223372036854775807, 0, 2]", "[0, 0]"), 0), "out of range");
}

TEST(Safetensors, RefusesBadOffsets) {
  expect_error(file_of(tensor("F32", "[1]", "[0, 4]"), 3), "file has only 3");
  expect_error(file_of(tensor("F32", "[1]", "[4, 0]"), 4), "0 <= begin <= end");
  expect_error(file_of(tensor("F32", "[1]", "[-4, 0]"), 4), "0 <= begin <= end");
  expect_error(file_of(tensor("F32", "[1]", "[0]"), 4), "two integers");
  expect_error(file_of(tensor("F32", "[1]", "[0, 4, 8]"), 8), "two integers");
  expect_error(file_of(tensor("F32", "[1]", "[0, 9223372036854775807]"), 4), "file has only 4");
  expect_error(file_of(tensor("F32", "[1]", "[4, 8]"), 8), "leaves a hole before it");
  expect_error(file_of(tensor("F32", "[1]", "[0, 4]"), 8), "hold 4 bytes but the file has 8");
  std::string overlap = R"({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},)"
                        R"("b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}})";
  expect_error(file_of(overlap, 6), "tensor \"b\" overlaps the tensor before it");
}

TEST(Safetensors, RefusesUnknownMembers) {
  expect_error(
      file_of(R"({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0], "x": 1}})", 0),
      "only the keys dtype, shape and data_offsets");
}

TEST(Safetensors, ReadsAFileWithoutItsData) {
  TemporaryDirectory dir;
  // A hole of 100 GB costs nothing to claim and must cost nothing to check.
  std::string header = tensor("U8", "[100000000000]", "[0, 100000000000]");
  write_file(dir / "sparse.safetensors", file_of(header, 0));
  std::filesystem::resize_file(dir / "sparse.safetensors", 8 + header.size() + 100000000000);
  EXPECT_EQ(read_safetensors_header(dir / "sparse.safetensors").tensors[0].nbytes, 100000000000u);
}

TEST(Safetensors, NamesTheFileThatCannotBeRead) {
  TemporaryDirectory dir;
  auto error_of = [&](const std::string& name) {
    return [&dir, name] { read_safetensors_header(dir / name); };
  };
  EXPECT_THAT(error_of("none"), ThrowsMessage<std::runtime_error>(
                                    AllOf(HasSubstr("/none: "), HasSubstr("No such file"))));
  EXPECT_THAT(error_of("."), ThrowsMessage<std::runtime_error>(HasSubstr("directory")));
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(error_of("pipe"), ThrowsMessage<std::runtime_error>(HasSubstr("/pipe: ")));
  write_file(dir / "short", "123");
  EXPECT_THAT(error_of("short"), ThrowsMessage<std::invalid_argument>(
                                     AllOf(HasSubstr("/short: "), HasSubstr("has 3 bytes"))));
}

}  // namespace
}  // namespace vllm_metal
