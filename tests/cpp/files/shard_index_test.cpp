// SPDX-License-Identifier: Apache-2.0
#include "files/shard_index.h"

#include <gmock/gmock.h>

#include <stdexcept>

namespace vllm_metal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;
using testing::ThrowsMessage;

std::string index_of(const std::string& name) {
  return R"({"weight_map": {"a": "one.safetensors", "b": ")" + name + "\"}}";
}

TEST(ShardIndex, TellsTheFileOfEachTensor) {
  EXPECT_THAT(parse_shard_index(index_of("...two.safetensors")),
              ElementsAre(Pair("a", "one.safetensors"), Pair("b", "...two.safetensors")));
  EXPECT_THAT(parse_shard_index(R"({"metadata": {"total_size": 1}, "weight_map": {}})"),
              ElementsAre());
}

TEST(ShardIndex, RefusesWhatIsNotAFileBesideIt) {
  for (const char* name : {"", ".", "..", "/etc/passwd", "../x.safetensors", "folder/x.safetensors",
                           "x.safetensors\\u0000.bin", "x\\ny", "x\\u001b[2Jy", "x\\u007f"}) {
    EXPECT_THAT(
        [&] { parse_shard_index(index_of(name)); },
        ThrowsMessage<std::invalid_argument>(HasSubstr("is not the name of a file beside it")))
        << name;
  }
}

TEST(ShardIndex, RefusesWhatIsNoIndex) {
  for (const char* index :
       {"", "{", "[]", "{}", R"({"weight_map": []})", R"({"weight_map": {"a": 1}})",
        R"({"weight_map": {"a": "x", "a": "y"}})", R"({"weight_map": {}, "weight_map": {}})"}) {
    EXPECT_THROW(parse_shard_index(index), std::invalid_argument) << index;
  }
}

}  // namespace
}  // namespace vllm_metal
