// SPDX-License-Identifier: Apache-2.0
// kv_write and copy_blocks on every device by dtype, head size, block size and how much they write:
// against copies on the host, and against their fallbacks.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <tuple>
#include <vector>

#include "common/text.h"
#include "kernels/cache_test.h"
#include "kernels/copy_blocks.h"
#include "kernels/kv_write.h"
#include "kernels/number_bank.h"
#include "kernels/table_cases.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

const std::vector<mx::Dtype> kDtypes{mx::float32, mx::float16, mx::bfloat16};
const std::vector<int> kHeadSizes{64, 80, 96, 128, 192, 256};
const std::vector<int> kHeadCounts{1, 3, 8};
const std::vector<int> kBlockSizes{0, 8, 16, 32, 64, 128};
const std::vector<int> kAmounts{1, 2, 7, 40, 300};  // tokens, or blocks

using CacheParam = std::tuple<TableDevice, int>;  // the second: index of a dtype

std::string name_of_param(const ::testing::TestParamInfo<CacheParam>& info) {
  const auto& [device, dtype] = info.param;
  return text(name_of(device), "_", kDtypes[dtype]);
}

// As large as any case's, at little cost.
Cache make_bank_cache(int num_rows, int num_heads, int head_dim, mx::Dtype dtype) {
  const mx::Shape shape{num_rows, num_heads, head_dim};
  return {NumberBank::of(dtype).copy(shape, 11), NumberBank::of(dtype).copy(shape, 500'009)};
}

struct CacheCase {
  int head_dim;
  int num_heads;
  int block_size;  // 0: one range
  int amount;
};

class CacheTable : public KernelTest, public ::testing::WithParamInterface<CacheParam> {
 protected:
  CacheTable() { std::get<0>(GetParam()).use(); }
  mx::Dtype dtype() const { return kDtypes[std::get<1>(GetParam())]; }

  std::vector<CacheCase> cases() const {
    const auto count = [](const auto& choices) { return static_cast<int>(choices.size()); };
    std::vector<CacheCase> result;
    for (const Levels& levels :
         table_cases({count(kHeadSizes), count(kHeadCounts), count(kBlockSizes), count(kAmounts)},
                     1 + std::get<1>(GetParam())))
      result.push_back({kHeadSizes[levels[0]], kHeadCounts[levels[1]], kBlockSizes[levels[2]],
                        kAmounts[levels[3]]});
    return result;
  }
};

INSTANTIATE_TEST_SUITE_P(All, CacheTable,
                         ::testing::Combine(::testing::ValuesIn(table_devices_of_copies()),
                                            ::testing::Range(0, 3)),
                         name_of_param);

// Slots of tokens that follow each other in blocks whose order is random.
std::vector<int32_t> slots_of(const CacheCase& c, int num_blocks) {
  const int unit = c.block_size == 0 ? c.amount : c.block_size;
  std::vector<int32_t> blocks(num_blocks), slots;
  std::iota(blocks.begin(), blocks.end(), 0);
  std::shuffle(blocks.begin(), blocks.end(), std::mt19937(c.amount));
  const int first = c.block_size / 2;
  for (int i = first; i < first + c.amount; ++i)
    slots.push_back(blocks[i / unit] * unit + i % unit);
  return slots;
}

TEST_P(CacheTable, KVWriteWritesTheSlotsAndNothingElse) {
  const auto all = cases();
  Progress progress(all.size());
  for (const CacheCase& c : all) {
    SCOPED_TRACE(
        text(c.amount, " tokens, ", c.num_heads, " x ", c.head_dim, ", blocks of ", c.block_size));
    const int unit = c.block_size == 0 ? c.amount : c.block_size;
    const int num_blocks = (c.block_size / 2 + c.amount) / unit + 3;
    const auto slots = slots_of(c, num_blocks);
    Cache cache = make_bank_cache(num_blocks * unit, c.num_heads, c.head_dim, dtype());
    Cache other = make_bank_cache(num_blocks * unit, c.num_heads, c.head_dim, dtype());
    const auto keys = random_array({c.amount, c.num_heads, c.head_dim}, dtype(), 1);
    const auto values = random_array({c.amount, c.num_heads, c.head_dim}, dtype(), 2);
    const auto expected_keys = with_rows(values_of(cache.keys), values_of(keys), slots);
    const auto expected_values = with_rows(values_of(cache.values), values_of(values), slots);
    const void* memory = cache.keys.data<void>();
    const BatchLayout layout = layout_of(slots);
    KVView view{cache.keys, cache.values, layout};
    KVView other_view{other.keys, other.values, layout};
    kv_write(view, keys, values);
    kv_write_fallback(other_view, keys, values);
    ASSERT_EQ(values_of(cache.keys), expected_keys);
    ASSERT_EQ(values_of(cache.values), expected_values);
    ASSERT_EQ(values_of(other.keys), expected_keys) << "the fallback";
    ASSERT_EQ(values_of(other.values), expected_values) << "the fallback";
    if (std::get<0>(GetParam()).isa) {
      ASSERT_EQ(cache.keys.data<void>(), memory);
    }
    progress.step();
  }
}

TEST_P(CacheTable, CopyBlocksCopiesTheBlocksAndNothingElse) {
  const auto all = cases();
  Progress progress(all.size());
  for (const CacheCase& c : all) {
    if (c.block_size == 0) continue;
    const int block_elements = c.block_size * c.num_heads * c.head_dim;
    const int amount = std::clamp(500'000 / block_elements, 1, std::min(c.amount, 40));
    SCOPED_TRACE(text(amount, " blocks of ", c.block_size, ", ", c.num_heads, " x ", c.head_dim));
    const int num_rows = (2 * amount + 1) * c.block_size;
    // One source in three has two targets.
    std::vector<BlockCopy> copies;
    for (int i = 0; i < amount; ++i)
      copies.push_back({2 * (i % 3 == 2 ? i - 1 : i), (2 * i + 3) % (2 * amount)});
    Cache cache = make_bank_cache(num_rows, c.num_heads, c.head_dim, dtype());
    Cache other = make_bank_cache(num_rows, c.num_heads, c.head_dim, dtype());
    std::vector<std::vector<double>> expected;
    const size_t block = block_elements;
    for (const mx::array& rows : {cache.keys, cache.values}) {
      const auto before = values_of(rows);
      expected.push_back(before);
      for (const auto& [source, target] : copies)
        std::copy_n(before.begin() + source * block, block,
                    expected.back().begin() + target * block);
    }
    copy_blocks(cache.keys, cache.values, copies, c.block_size);
    copy_blocks_fallback(other.keys, other.values, copies, c.block_size);
    ASSERT_EQ(values_of(cache.keys), expected[0]);
    ASSERT_EQ(values_of(cache.values), expected[1]);
    ASSERT_EQ(values_of(other.keys), expected[0]) << "the fallback";
    ASSERT_EQ(values_of(other.values), expected[1]) << "the fallback";
    progress.step();
  }
}

}  // namespace
}  // namespace vllm_metal
