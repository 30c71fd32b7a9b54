// SPDX-License-Identifier: Apache-2.0
// What keeps the time of a write to the cache flat from a pool of 1 MB to one of 8 GB: the memory
// never moves, nothing of its size is allocated, and only the pages that rows lie in are touched.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "common/mlx_buffer.h"
#include "kernels/cache_test.h"
#include "kernels/copy_blocks.h"
#include "kernels/kv_write.h"
#include "kernels/split_rotary.h"
#include "kernels/varlen_attention.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

constexpr HeadCounts kHeads{4, 4, 64};
constexpr int kBlockSize = 16;
constexpr int64_t kRowBytes = int64_t{kHeads.num_kv_heads} * kHeads.head_dim * 2;
constexpr int kSteps = 20;
constexpr int kTokens = 8;  // of a step

// Bytes of this process in memory; none where the system does not say.
std::optional<int64_t> resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t size = 0, resident = 0;
  if (!(statm >> size >> resident)) return std::nullopt;
  return resident * sysconf(_SC_PAGESIZE);
}

// What touching one byte brings into memory, at most.
int64_t page_bytes() {
  std::ifstream huge_pages("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string choices;
  std::getline(huge_pages, choices);
  if (choices.find("[always]") != std::string::npos) return 2 << 20;
  return std::max<int64_t>(sysconf(_SC_PAGESIZE), kRowBytes);
}

// Keys and values of a pool that nothing has touched; none where there is no room for it.
std::optional<Cache> make_pool(int64_t bytes) {
  const int num_rows = static_cast<int>(bytes / 2 / kRowBytes);
  const mx::Shape shape{num_rows, kHeads.num_kv_heads, kHeads.head_dim};
  try {
    return Cache{uninitialized(shape, mx::bfloat16), uninitialized(shape, mx::bfloat16)};
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

// The rows of a step's tokens: of other blocks in each step, far from each other.
std::vector<int32_t> slots_of(int step, int num_rows) {
  std::vector<int32_t> slots;
  const int64_t num_blocks = num_rows / kBlockSize;
  for (int64_t i = 0; i < kTokens; ++i)
    slots.push_back(
        static_cast<int32_t>((step * kTokens + i) * num_blocks / (kSteps * kTokens) * kBlockSize));
  return slots;
}

using Write = std::function<mx::array(KVView&, float value)>;

mx::array write_keys_and_values(KVView& view, float value) {
  const auto tokens =
      mx::full({kTokens, kHeads.num_kv_heads, kHeads.head_dim}, value, mx::bfloat16);
  kv_write(view, tokens, tokens);
  return tokens;
}

mx::array rotate_and_write(KVView& view, float value) {
  const int width = (kHeads.num_heads + 2 * kHeads.num_kv_heads) * kHeads.head_dim;
  return rotary_kv_write(mx::full({kTokens, width}, value, mx::bfloat16), mx::zeros({kTokens, 0}),
                         kHeads, view);
}

// Writes and reads with two steps in flight, as a server does.
void run_steps(Cache& pool, const Write& write) {
  const int num_rows = pool.keys.shape(0);
  const void* keys_memory = pool.keys.data<void>();
  const void* values_memory = pool.values.data<void>();
  std::deque<mx::array> in_flight;
  for (int step = 0; step < kSteps; ++step) {
    const auto slots = slots_of(step, num_rows);
    std::vector<int32_t> starts(kTokens + 1), lens(kTokens, 1), tables;
    for (int i = 0; i <= kTokens; ++i) starts[i] = i;
    for (int32_t slot : slots) tables.push_back(slot / kBlockSize);
    const BatchLayout layout(starts, lens, slots, tables, kBlockSize);
    KVView view{pool.keys, pool.values, layout};
    // Attention to one key is that key's value.
    const mx::array queries = write(view, static_cast<float>(step + 1));
    in_flight.push_back(varlen_attention(queries, view, {.scale = 1.0f}));
    mx::async_eval(in_flight.back(), pool.keys, pool.values);
    ASSERT_EQ(pool.keys.data<void>(), keys_memory);
    ASSERT_EQ(pool.values.data<void>(), values_memory);
    if (in_flight.size() < 3) continue;
    ASSERT_EQ(values_of(in_flight.front()).front(), step - 1);
    in_flight.pop_front();
  }
  mx::eval(std::vector<mx::array>(in_flight.begin(), in_flight.end()));
}

// Steps on a pool of so many bytes, and what they did to memory.
void expect_no_pool_sized_work(int64_t pool_bytes, const Write& write) {
  if (auto small = make_pool(1 << 20)) run_steps(*small, write);  // what is allocated only once
  auto pool = make_pool(pool_bytes);
  if (!pool) GTEST_SKIP() << "no room for a pool of " << pool_bytes << " bytes";
  const size_t active = mx::get_active_memory();
  const auto resident = resident_bytes();
  mx::reset_peak_memory();
  ASSERT_NO_FATAL_FAILURE(run_steps(*pool, write));
  EXPECT_LT(mx::get_peak_memory(), active + (size_t{1} << 20));
  if (!resident) return;
  // A page for each row of keys and of values, several times that for the thread sanitizer's notes,
  // and what the allocator keeps (that of CUDA 20 MB, for a pool of any size).
  const int64_t rows = 2 * kSteps * kTokens;
  EXPECT_LT(*resident_bytes() - *resident, 8 * rows * page_bytes() + (16 << 20));
}

class PoolMemory : public KernelTest, public ::testing::WithParamInterface<int64_t> {};

TEST_P(PoolMemory, KVWriteTouchesItsRowsOnly) {
  expect_no_pool_sized_work(GetParam(), write_keys_and_values);
}

TEST_P(PoolMemory, RotaryKVWriteTouchesItsRowsOnly) {
  expect_no_pool_sized_work(GetParam(), rotate_and_write);
}

TEST_P(PoolMemory, CopyBlocksTouchesItsBlocksOnly) {
  expect_no_pool_sized_work(GetParam(), [](KVView& view, float value) {
    const mx::array tokens = write_keys_and_values(view, value);
    // The last block is no token's.
    const int32_t last = view.keys.shape(0) / kBlockSize - 1;
    copy_blocks(view.keys, view.values, {{view.layout.block_tables[0], last}}, kBlockSize);
    return tokens;
  });
}

std::string name_of(const ::testing::TestParamInfo<int64_t>& info) {
  return std::to_string(info.param >> 20) + "MB";
}
INSTANTIATE_TEST_SUITE_P(All, PoolMemory,
                         ::testing::Values(int64_t{1} << 20, int64_t{64} << 20, int64_t{1} << 30,
                                           int64_t{8} << 30),
                         name_of);

}  // namespace
}  // namespace vllm_metal
