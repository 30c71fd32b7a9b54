// SPDX-License-Identifier: Apache-2.0
#include "sampling/copy_logits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "reference.h"

namespace vllm_metal {
namespace {

using reference::kInfinity;

TEST(CopyLogits, MasksWhatHasNoBit) {
  std::mt19937 engine(3);
  for (int size : {1, 31, 32, 33, 64, 100, 1000}) {
    const auto logits = reference::random_logits(size, 1.0f, size);
    for (int kind = 0; kind < 4; ++kind) {  // none, all, dense, sparse
      std::vector<int32_t> bitmask;
      for (int word = 0; word < (size + 31) / 32; ++word) {
        const uint32_t sparse = engine() % 3 == 0 ? uint32_t{1} << engine() % 32 : 0;
        const uint32_t words[] = {0, UINT32_MAX, static_cast<uint32_t>(engine()), sparse};
        bitmask.push_back(static_cast<int32_t>(words[kind]));
      }
      std::vector<float> copy(size, 7.0f);
      copy_logits(logits, bitmask.data(), copy);
      for (int id = 0; id < size; ++id) {
        const bool allowed = (static_cast<uint32_t>(bitmask[id / 32]) >> (id % 32) & 1) != 0;
        ASSERT_EQ(copy[id], allowed ? logits[id] : -kInfinity) << size << " " << id;
      }
    }
    std::vector<float> copy(size, 7.0f);
    copy_logits(logits, nullptr, copy);
    EXPECT_EQ(copy, logits);
  }
}

TEST(CopyLogits, KeepsAllowedTokensOnly) {
  std::vector<float> logits(40, 2.0f);
  std::vector<float> copy(40, 7.0f);
  const std::vector<int32_t> ids = {33, 5, 5};
  copy_allowed_logits(logits, nullptr, ids, copy);
  for (int id = 0; id < 40; ++id) EXPECT_EQ(copy[id], id == 5 || id == 33 ? 2.0f : -kInfinity);
  const std::vector<int32_t> bitmask = {0, 1 << 1};
  copy_allowed_logits(logits, bitmask.data(), ids, copy);
  for (int id = 0; id < 40; ++id) EXPECT_EQ(copy[id], id == 33 ? 2.0f : -kInfinity);
}

}  // namespace
}  // namespace vllm_metal
