// SPDX-License-Identifier: Apache-2.0
// Model directories that are not what they claim: errors that name the file, no wait and no memory.
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <filesystem>
#include <stdexcept>

#include "support/error_of.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"
#include "weights/weight_store.h"

namespace vllm_metal {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::TempDir;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kShard = "one.safetensors";

void write_index(const TempDir& dir) {
  dir.write(kIndex, R"({"weight_map":{"a":"one.safetensors"}})");
}

std::string error_of_opening(const fs::path& dir) {
  return error_of([&] { WeightStore store(dir); });
}

TEST(HostileWeights, ShardsThatAreNoFilesAreRefused) {
  TempDir dir;
  write_index(dir);
  const fs::path shard = dir.path() / kShard;
  fs::create_directory(shard);
  EXPECT_THAT(error_of_opening(dir.path()), AllOf(HasSubstr(kShard), HasSubstr("directory")));
  fs::remove(shard);
  ASSERT_EQ(::mkfifo(shard.c_str(), 0600), 0);
  EXPECT_THAT(error_of_opening(dir.path()), HasSubstr(kShard));
  for (const char* target : {"/dev/zero", "/dev/null", "nowhere", kShard}) {
    fs::remove(shard);
    fs::create_symlink(target, shard);
    EXPECT_THAT(error_of_opening(dir.path()), HasSubstr(kShard)) << target;
  }
}

TEST(HostileWeights, ShardsThatAreEmptyOrCutAreRefused) {
  TempDir dir;
  write_index(dir);
  dir.write(kShard, "");
  EXPECT_THAT(error_of_opening(dir.path()), AllOf(HasSubstr(kShard), HasSubstr("0 bytes")));
  fs::remove(dir.path() / kShard);
  test::write_safetensors(dir.path() / kShard, {{"a", mx::zeros({4})}});
  fs::resize_file(dir.path() / kShard, fs::file_size(dir.path() / kShard) - 1);
  EXPECT_THAT(error_of_opening(dir.path()), HasSubstr(kShard));
}

TEST(HostileWeights, IndexesThatAreNoSmallFilesAreRefused) {
  TempDir dir;
  test::write_safetensors(dir.path() / "model.safetensors", {{"a", mx::zeros({1})}});
  const fs::path index = dir.path() / kIndex;
  ASSERT_EQ(::mkfifo(index.c_str(), 0600), 0);
  EXPECT_THAT(error_of_opening(dir.path()), HasSubstr(kIndex));
  fs::remove(index);
  dir.write(kIndex, "");
  fs::resize_file(index, 100'000'000'000);
  EXPECT_THAT(error_of_opening(dir.path()),
              AllOf(HasSubstr(kIndex), HasSubstr("at most 100000000 are allowed")));
}

// As in the hub's cache: snapshots/<revision>/<file> leads to ../../blobs/<hash>.
TEST(HostileWeights, LinkedShardsAreRead) {
  TempDir dir;
  const fs::path snapshot = dir.path() / "snapshots/main", blobs = dir.path() / "blobs";
  fs::create_directories(snapshot);
  fs::create_directory(blobs);
  test::write_safetensors(blobs / "0123.safetensors", {{"a", mx::zeros({3})}});
  dir.write("blobs/4567", R"({"weight_map":{"a":"one.safetensors"}})");
  fs::create_symlink("../../blobs/0123.safetensors", snapshot / kShard);
  fs::create_symlink("../../blobs/4567", snapshot / kIndex);
  WeightStore store(snapshot);
  EXPECT_EQ(store.take("a", {3}).size(), 3u);
}

// Files are written from anywhere; a message is one line that a terminal can show.
TEST(HostileWeights, NamesInMessagesAreFitForATerminal) {
  TempDir dir;
  test::write_safetensors(dir.path() / "model.safetensors", {{"a\n\x1b[2Jb", mx::zeros({1})}});
  WeightStore store(dir.path());
  EXPECT_THAT(error_of([&] { store.expect_empty(); }),
              AllOf(HasSubstr("a??[2Jb"), Not(HasSubstr("\n"))));
}

// A claim costs nothing until its shape is what the model's configuration implies.
TEST(HostileWeights, AShapeIsComparedBeforeMemoryIsTaken) {
  TempDir dir;
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[100000000000],"data_offsets":[0,100000000000]}})";
  std::string content(8, '\0');
  content[0] = static_cast<char>(header.size());
  dir.write("model.safetensors", content + header);
  fs::resize_file(dir.path() / "model.safetensors", 8 + header.size() + 100'000'000'000);
  WeightStore store(dir.path());
  EXPECT_THAT(error_of([&] { store.take("a", {100}); }), HasSubstr("must have shape [100]"));
}

}  // namespace
}  // namespace vllm_metal
