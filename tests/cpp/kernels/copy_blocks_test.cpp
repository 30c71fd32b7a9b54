// SPDX-License-Identifier: Apache-2.0
#include "kernels/copy_blocks.h"

#include <algorithm>
#include <deque>
#include <stdexcept>

#include "kernels/cache_test.h"
#include "kernels/kv_write.h"
#include "kernels/table_cases.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

// `cache` after the copies.
std::vector<double> copied(const mx::array& cache, const std::vector<BlockCopy>& copies,
                           int block_size) {
  const auto before = values_of(cache);
  auto result = before;
  const size_t block = static_cast<size_t>(block_size) * cache.shape(1) * cache.shape(2);
  for (const auto& [source, target] : copies)
    std::copy_n(before.begin() + source * block, block, result.begin() + target * block);
  return result;
}

class CopyBlocks : public KernelTest {};

// Values, the same ones from the fallback, and everything else as it was.
TEST_F(CopyBlocks, TargetsBecomeTheirSources) {
  for (mx::Dtype dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    for (int block_size : {1, 8, 16, 128}) {
      for (const std::vector<BlockCopy>& copies : std::vector<std::vector<BlockCopy>>{
               {{0, 5}}, {{5, 0}}, {{3, 2}, {6, 1}, {4, 5}}, {{3, 0}, {3, 6}, {3, 4}}}) {
        Cache cache = make_cache(7 * block_size, 3, 8, dtype);
        Cache other = make_cache(7 * block_size, 3, 8, dtype);
        const auto keys = copied(cache.keys, copies, block_size);
        const auto values = copied(cache.values, copies, block_size);
        const void* memory = cache.keys.data<void>();
        copy_blocks(cache.keys, cache.values, copies, block_size);
        copy_blocks_fallback(other.keys, other.values, copies, block_size);
        ASSERT_EQ(values_of(cache.keys), keys);
        ASSERT_EQ(values_of(cache.values), values);
        ASSERT_EQ(values_of(other.keys), keys);
        ASSERT_EQ(values_of(other.values), values);
        ASSERT_EQ(cache.keys.data<void>(), memory);
      }
    }
  }
}

TEST_F(CopyBlocks, ManyBlocksOnSeveralThreads) {
  constexpr int kBlocks = 300, kBlockSize = 16;
  std::vector<BlockCopy> copies;
  for (int i = 0; i < kBlocks / 2; ++i)
    copies.push_back({2 * ((i * 7) % (kBlocks / 2)), 2 * i + 1});
  Cache cache = make_cache(kBlocks * kBlockSize, 3, 64, mx::bfloat16);
  const auto keys = copied(cache.keys, copies, kBlockSize);
  const auto values = copied(cache.values, copies, kBlockSize);
  copy_blocks(cache.keys, cache.values, copies, kBlockSize);
  EXPECT_EQ(values_of(cache.keys), keys);
  EXPECT_EQ(values_of(cache.values), values);
}

// Each step writes a token into block 0 and copies it to another block, while the readers of the
// two steps before still run: the memory stays, and each reader sees the steps up to its own.
TEST_F(CopyBlocks, MemoryStaysWithTwoStepsInFlight) {
  constexpr int kBlocks = 64, kBlockSize = 16, kHeads = 4, kHeadDim = 64;
  Cache cache{mx::zeros({kBlocks * kBlockSize, kHeads, kHeadDim}),
              mx::zeros({kBlocks * kBlockSize, kHeads, kHeadDim})};
  mx::eval(cache.keys, cache.values);
  const void* keys_memory = cache.keys.data<void>();
  const void* values_memory = cache.values.data<void>();
  std::deque<mx::array> in_flight;
  for (int step = 1; step < kBlocks; ++step) {
    const BatchLayout layout = layout_of({0});
    KVView view{cache.keys, cache.values, layout};
    const auto token = mx::full({1, kHeads, kHeadDim}, static_cast<float>(step));
    kv_write(view, token, -token);
    copy_blocks(cache.keys, cache.values, {{0, step}}, kBlockSize);
    in_flight.push_back(mx::sum(cache.keys) - mx::sum(cache.values));
    mx::async_eval(in_flight.back(), cache.keys, cache.values);
    ASSERT_EQ(cache.keys.data<void>(), keys_memory) << "step " << step;
    ASSERT_EQ(cache.values.data<void>(), values_memory) << "step " << step;
    if (in_flight.size() < 3) continue;
    const int seen = step - 2;  // blocks 1 to `seen` hold their steps, block 0 the last one
    const double rows = seen * (seen + 1) / 2.0 + seen;
    ASSERT_EQ(in_flight.front().item<float>(), 2 * rows * kHeads * kHeadDim) << "step " << step;
    in_flight.pop_front();
  }
}

TEST_F(CopyBlocks, IsOneNodeForBothCaches) {
  Cache cache = make_cache(16, 2, 8, mx::float32);
  const mx::array old_keys = cache.keys;
  copy_blocks(cache.keys, cache.values, {{0, 1}, {0, 2}}, 4);
  ASSERT_TRUE(cache.keys.has_primitive());
  EXPECT_EQ(cache.keys.primitive_id(), cache.values.primitive_id());
  EXPECT_EQ(cache.keys.inputs()[0].id(), old_keys.id());
}

TEST_F(CopyBlocks, NoCopiesAreNoNode) {
  Cache cache = make_cache(16, 2, 8, mx::float32);
  const auto id = cache.keys.id();
  copy_blocks(cache.keys, cache.values, {}, 4);
  EXPECT_EQ(cache.keys.id(), id);
}

TEST_F(CopyBlocks, RefusesToWriteThroughAView) {
  mx::array keys = mx::transpose(mx::zeros({2, 8, 8}), {1, 0, 2});
  mx::array values = mx::zeros({8, 2, 8});
  copy_blocks(keys, values, {{0, 1}}, 4);
  EXPECT_EQ(message_of<std::runtime_error>([&] { mx::eval(keys); }),
            "[copy_blocks] the caches must be row contiguous to be written.");
}

TEST_F(CopyBlocks, RefusesWhatDoesNotFit) {
  Cache cache = make_cache(32, 2, 8, mx::float32);
  const auto refuse = [&](const std::vector<BlockCopy>& copies, int block_size) {
    const auto id = cache.keys.id();
    const auto message = message_of<std::invalid_argument>(
        [&] { copy_blocks(cache.keys, cache.values, copies, block_size); });
    EXPECT_EQ(cache.keys.id(), id);
    return message;
  };
  EXPECT_EQ(refuse({{0, 1}}, 0), "[copy_blocks] block_size must be positive but is 0.");
  EXPECT_EQ(refuse({{0, 1}}, 12),
            "[copy_blocks] the cache must have whole blocks of 12 rows but has 32 rows.");
  EXPECT_EQ(refuse({{0, 1}, {4, 2}}, 8),
            "[copy_blocks] source must lie in [0, 4), the blocks of the cache, but is 4.");
  EXPECT_EQ(refuse({{0, -1}}, 8),
            "[copy_blocks] target must lie in [0, 4), the blocks of the cache, but is -1.");
  EXPECT_EQ(refuse({{0, 3}, {1, 3}}, 8),
            "[copy_blocks] the targets must differ but block 3 is the target of two copies.");
  EXPECT_EQ(refuse({{0, 1}, {1, 2}}, 8),
            "[copy_blocks] no source may be a target but block 1 is both.");
  EXPECT_EQ(refuse({{2, 2}}, 8), "[copy_blocks] no source may be a target but block 2 is both.");
  mx::array narrow = mx::zeros({32, 1, 8});
  EXPECT_EQ(
      message_of<std::invalid_argument>([&] { copy_blocks(cache.keys, narrow, {{0, 1}}, 8); }),
      "[copy_blocks] the key cache and the value cache must have one shape, "
      "(num_rows,num_kv_heads,head_dim), but have (32,2,8) and (32,1,8).");
}

}  // namespace
}  // namespace vllm_metal
