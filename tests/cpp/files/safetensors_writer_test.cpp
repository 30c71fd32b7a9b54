// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/resource.h>
#include <csignal>
#include <numeric>

#include "files/safetensors.h"
#include "temporary_directory.h"

namespace vllm_metal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

TensorInfo declare(const std::string& name, StoredDtype dtype, std::vector<int64_t> shape) {
  TensorInfo tensor;
  tensor.name = name;
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  return tensor;
}

std::vector<std::byte> counting_bytes(size_t size, int first) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(first + static_cast<int>(i));
  return bytes;
}

class SafetensorsWriterTest : public ::testing::Test {
 protected:
  TemporaryDirectory dir_;
  std::filesystem::path path_ = dir_ / "out.safetensors";
};

TEST_F(SafetensorsWriterTest, WritesWhatTheReaderReads) {
  const auto first = counting_bytes(12, 1);
  const auto second = counting_bytes(8, 100);
  SafetensorsWriter writer(
      path_,
      {declare("z.\"weight\"", StoredDtype::kF16, {2, 3}),
       declare("empty", StoredDtype::kF32, {0, 4}), declare("a", StoredDtype::kU32, {2})},
      {{"format", "mlx"}});
  writer.write(first);
  writer.write({});
  writer.write(second);
  writer.finish();

  SafetensorsHeader header = read_safetensors_header(path_);
  EXPECT_THAT(header.metadata, ElementsAre(std::pair("format", "mlx")));
  ASSERT_EQ(header.tensors.size(), 3u);
  EXPECT_EQ(header.tensors[0].name, "z.\"weight\"");
  EXPECT_EQ(header.tensors[0].offset % 8, 0u);
  const std::string file = read_file(path_);
  auto stored = [&](size_t i) {
    return file.substr(header.tensors[i].offset, header.tensors[i].nbytes);
  };
  EXPECT_EQ(stored(0), std::string(reinterpret_cast<const char*>(first.data()), 12));
  EXPECT_EQ(header.tensors[1].name, "empty");
  EXPECT_EQ(header.tensors[2].name, "a");
  EXPECT_EQ(stored(2), std::string(reinterpret_cast<const char*>(second.data()), 8));
}

TEST_F(SafetensorsWriterTest, RemovesAnUnfinishedFile) {
  {
    SafetensorsWriter writer(path_, {declare("a", StoredDtype::kU8, {4})}, {});
    EXPECT_TRUE(std::filesystem::exists(path_));
    EXPECT_THAT([&] { writer.finish(); },
                ThrowsMessage<std::runtime_error>(HasSubstr("tensor \"a\" was not written")));
  }
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(SafetensorsWriterTest, RefusesAnotherSizeOrOneTensorTooMany) {
  SafetensorsWriter writer(path_, {declare("a", StoredDtype::kU8, {4})}, {});
  EXPECT_THAT([&] { writer.write(counting_bytes(5, 0)); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("\"a\" has 4 bytes but got 5")));
  writer.write(counting_bytes(4, 0));
  EXPECT_THROW(writer.write({}), std::invalid_argument);
  writer.finish();
  EXPECT_EQ(read_safetensors_header(path_).tensors.size(), 1u);
}

TEST_F(SafetensorsWriterTest, KeepsAnExistingFile) {
  write_file(path_, "mine");
  EXPECT_THAT([&] { SafetensorsWriter writer(path_, {}, {}); },
              ThrowsMessage<std::runtime_error>(HasSubstr("out.safetensors: File exists")));
  EXPECT_EQ(read_file(path_), "mine");
}

TEST_F(SafetensorsWriterTest, RefusesBadDeclarations) {
  auto opening = [&](std::vector<TensorInfo> tensors) {
    return [this, tensors] { SafetensorsWriter writer(path_, tensors, {}); };
  };
  auto a = declare("a", StoredDtype::kU8, {1});
  EXPECT_THROW(opening({a, a})(), std::invalid_argument);
  EXPECT_THROW(opening({declare("__metadata__", StoredDtype::kU8, {1})})(), std::invalid_argument);
  EXPECT_THROW(opening({declare("b", StoredDtype::kF64, {INT64_MAX})})(), std::invalid_argument);
  auto half = declare("c", StoredDtype::kU8, {INT64_MAX});
  EXPECT_THROW(opening({a, half})(), std::invalid_argument);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(SafetensorsWriterTest, LeavesNothingWhenTheDiskRefuses) {
  // A limit on the size of files stands for a full disk.
  struct rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  auto* handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit limit = before;
  limit.rlim_cur = 1 << 16;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  {
    SafetensorsWriter writer(path_, {declare("a", StoredDtype::kU8, {1 << 20})}, {});
    EXPECT_THAT([&] { writer.write(counting_bytes(1 << 20, 0)); },
                ThrowsMessage<std::runtime_error>(HasSubstr("cannot write " + path_.string())));
  }
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

}  // namespace
}  // namespace vllm_metal
