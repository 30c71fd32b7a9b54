// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_write.h"

#include <algorithm>
#include <deque>
#include <numeric>
#include <stdexcept>

#include "kernels/cache_test.h"
#include "kernels/table_cases.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

constexpr mx::Dtype kDtypes[] = {mx::float32, mx::float16, mx::bfloat16};

class KVWrite : public KernelTest {};

TEST_F(KVWrite, RowsLandWhereTheSlotsSay) {
  const std::vector<int32_t> slots{3, 4, 5, 0, 19, 7, 8, 2};
  const int num_tokens = static_cast<int>(slots.size());
  for (mx::Dtype dtype : kDtypes) {
    Cache cache = make_cache(20, 3, 8, dtype);
    const auto keys = random_array({num_tokens, 3, 8}, dtype, 1);
    const auto values = random_array({num_tokens, 3, 8}, dtype, 2);
    const auto expected_keys = with_rows(values_of(cache.keys), values_of(keys), slots);
    const auto expected_values = with_rows(values_of(cache.values), values_of(values), slots);
    const BatchLayout layout = layout_of(slots);
    KVView view{cache.keys, cache.values, layout};
    kv_write(view, keys, values);
    EXPECT_EQ(values_of(cache.keys), expected_keys);
    EXPECT_EQ(values_of(cache.values), expected_values);
  }
}

TEST_F(KVWrite, ManyTokensOnSeveralThreads) {
  std::vector<int32_t> slots(3000);
  std::iota(slots.begin(), slots.end(), 50);
  std::shuffle(slots.begin(), slots.end(), std::mt19937(1));
  Cache cache = make_cache(3100, 3, 64, mx::float32);
  const auto keys = random_array({3000, 3, 64}, mx::float32, 1);
  const auto values = random_array({3000, 3, 64}, mx::float32, 2);
  const auto expected_keys = with_rows(values_of(cache.keys), values_of(keys), slots);
  const auto expected_values = with_rows(values_of(cache.values), values_of(values), slots);
  const BatchLayout layout = layout_of(slots);
  KVView view{cache.keys, cache.values, layout};
  kv_write(view, keys, values);
  EXPECT_EQ(values_of(cache.keys), expected_keys);
  EXPECT_EQ(values_of(cache.values), expected_values);
}

TEST_F(KVWrite, ReadsStridedTokens) {
  const std::vector<int32_t> slots{9, 1, 2, 5};
  const auto fused = random_array({4, 7, 8}, mx::bfloat16, 1);
  const auto of_fused = mx::slice(fused, {0, 2, 0}, {4, 5, 8});
  const auto every_other = mx::slice(fused, {0, 1, 0}, {4, 6, 8}, {1, 2, 1});
  const auto transposed = mx::transpose(random_array({8, 3, 4}, mx::bfloat16, 2));
  const BatchLayout layout = layout_of(slots);
  for (const auto& tokens : {of_fused, every_other, transposed}) {
    Cache cache = make_cache(10, 3, 8, mx::bfloat16);
    const auto expected_keys = with_rows(values_of(cache.keys), values_of(tokens), slots);
    const auto expected_values = with_rows(values_of(cache.values), values_of(of_fused), slots);
    KVView view{cache.keys, cache.values, layout};
    kv_write(view, tokens, of_fused);
    EXPECT_EQ(values_of(cache.keys), expected_keys);
    EXPECT_EQ(values_of(cache.values), expected_values);
  }
}

TEST_F(KVWrite, FallbackWritesTheSame) {
  const std::vector<int32_t> slots{10, 11, 12, 3, 4, 2, 15};
  const BatchLayout layout = layout_of(slots);
  for (mx::Dtype dtype : kDtypes) {
    Cache cache = make_cache(16, 2, 24, dtype);
    Cache other = make_cache(16, 2, 24, dtype);
    const auto keys = random_array({7, 2, 24}, dtype, 1);
    const auto values = random_array({7, 2, 24}, dtype, 2);
    KVView view{cache.keys, cache.values, layout};
    KVView other_view{other.keys, other.values, layout};
    kv_write(view, keys, values);
    kv_write_fallback(other_view, keys, values);
    expect_equal(cache.keys, other.keys);
    expect_equal(cache.values, other.values);
  }
}

TEST_F(KVWrite, OddSizesWhereverTheyLie) {
  for (mx::Dtype dtype : kDtypes) {
    for (int head_dim : kOddSizes) {
      for (const auto& [num_tokens, num_heads] : {std::pair{1, 7}, {7, 3}, {40, 1}}) {
        for (Placement placement : kPlacements) {
          SCOPED_TRACE(testing::Message() << num_tokens << " x " << num_heads << " x " << head_dim
                                          << ", " << text_of(placement));
          std::vector<int32_t> slots(50);
          std::iota(slots.begin(), slots.end(), 0);
          std::shuffle(slots.begin(), slots.end(), std::mt19937(head_dim));
          slots.resize(num_tokens);
          const auto tokens = mx::unflatten(
              placed(random_array({num_tokens, num_heads * head_dim}, dtype, 20), placement), 1,
              {num_heads, head_dim});
          Cache cache = make_cache(50, num_heads, head_dim, dtype);
          Cache other = make_cache(50, num_heads, head_dim, dtype);
          const auto expected = with_rows(values_of(cache.keys), values_of(tokens), slots);
          const BatchLayout layout = layout_of(slots);
          KVView view{cache.keys, cache.values, layout};
          KVView other_view{other.keys, other.values, layout};
          kv_write(view, tokens, tokens);
          kv_write_fallback(other_view, tokens, tokens);
          ASSERT_EQ(values_of(cache.keys), expected);
          ASSERT_NO_FATAL_FAILURE(expect_equal(cache.keys, other.keys));
          ASSERT_NO_FATAL_FAILURE(expect_equal(cache.values, other.values));
        }
      }
    }
  }
}

// Two steps are in flight: the reader of a step still runs when the next step writes. The memory
// must not move, and each reader must see the steps up to its own and no later one.
void write_with_readers_in_flight(int num_rows) {
  constexpr int kSteps = 50;
  constexpr int kHeads = 4;
  constexpr int kHeadDim = 64;
  Cache cache{mx::zeros({num_rows, kHeads, kHeadDim}), mx::zeros({num_rows, kHeads, kHeadDim})};
  mx::eval(cache.keys, cache.values);
  const void* keys_memory = cache.keys.data<void>();
  const void* values_memory = cache.values.data<void>();
  struct Reader {
    mx::array sum;
    double expected;
  };
  std::deque<Reader> in_flight;
  double expected = 0;
  for (int step = 0; step < kSteps; ++step) {
    const BatchLayout layout = layout_of({(step * 7919) % num_rows});
    KVView view{cache.keys, cache.values, layout};
    const auto token = mx::full({1, kHeads, kHeadDim}, static_cast<float>(step + 1));
    kv_write(view, token, -token);
    expected += 2.0 * kHeads * kHeadDim * (step + 1);
    in_flight.push_back({mx::sum(cache.keys) - mx::sum(cache.values), expected});
    mx::async_eval(in_flight.back().sum, cache.keys, cache.values);
    ASSERT_EQ(cache.keys.data<void>(), keys_memory) << "step " << step;
    ASSERT_EQ(cache.values.data<void>(), values_memory) << "step " << step;
    if (in_flight.size() < 3) continue;
    ASSERT_EQ(in_flight.front().sum.item<float>(), in_flight.front().expected) << "step " << step;
    in_flight.pop_front();
  }
}

TEST_F(KVWrite, MemoryStaysWithReadersInFlight1MB) { write_with_readers_in_flight(1024); }
TEST_F(KVWrite, MemoryStaysWithReadersInFlight64MB) { write_with_readers_in_flight(65536); }

TEST_F(KVWrite, IsOneNodeForBothCaches) {
  Cache cache = make_cache(8, 2, 8, mx::float32);
  const mx::array old_keys = cache.keys;
  const auto keys = random_array({1, 2, 8}, mx::float32, 1);
  const BatchLayout layout = layout_of({5});
  KVView view{cache.keys, cache.values, layout};
  kv_write(view, keys, keys);
  ASSERT_TRUE(cache.keys.has_primitive());
  EXPECT_EQ(cache.keys.primitive_id(), cache.values.primitive_id());
  EXPECT_EQ(cache.keys.inputs()[0].id(), old_keys.id());
  EXPECT_EQ(cache.keys.inputs()[2].id(), keys.id());
}

TEST_F(KVWrite, ZeroTokensChangeNothing) {
  Cache cache = make_cache(8, 2, 8, mx::float32);
  const auto before = values_of(cache.keys);
  const BatchLayout layout = layout_of({});
  for (const auto write : {kv_write, kv_write_fallback}) {
    KVView view{cache.keys, cache.values, layout};
    write(view, mx::zeros({0, 2, 8}), mx::zeros({0, 2, 8}));
    EXPECT_EQ(values_of(cache.keys), before);
  }
}

// Writing in place into a view would write somewhere else, or not be seen through the view.
TEST_F(KVWrite, RefusesToWriteThroughAView) {
  mx::array keys = mx::transpose(mx::zeros({2, 8, 8}), {1, 0, 2});
  mx::array values = mx::zeros({8, 2, 8});
  const BatchLayout layout = layout_of({0});
  KVView view{keys, values, layout};
  kv_write(view, mx::ones({1, 2, 8}), mx::ones({1, 2, 8}));
  EXPECT_EQ(message_of<std::runtime_error>([&] { mx::eval(keys); }),
            "[kv_write] the caches must be row contiguous to be written.");
}

TEST_F(KVWrite, RefusesWhatDoesNotFit) {
  Cache cache = make_cache(8, 2, 8, mx::float32);
  const auto refuse = [&](std::vector<int32_t> slots, const mx::array& keys,
                          const mx::array& values) {
    const BatchLayout layout = layout_of(std::move(slots));
    KVView view{cache.keys, cache.values, layout};
    return message_of<std::invalid_argument>([&] { kv_write(view, keys, values); });
  };
  const auto token = mx::zeros({1, 2, 8});
  EXPECT_EQ(refuse({0}, mx::zeros({1, 2, 16}), token),
            "[kv_write] keys must have shape (1,2,8) but has (1,2,16).");
  EXPECT_EQ(refuse({0, 1}, token, token),
            "[kv_write] keys must have shape (2,2,8) but has (1,2,8).");
  EXPECT_EQ(refuse({0}, token, mx::zeros({1, 3, 8})),
            "[kv_write] values must have shape (1,2,8) but has (1,3,8).");
  EXPECT_EQ(refuse({0}, token, mx::zeros({1, 2, 8}, mx::float16)),
            "[kv_write] values must have the dtype of the cache, float32, but is float16.");
  EXPECT_EQ(refuse({8}, token, token),
            "[kv_write] slot_mapping must lie in [0, 8), the rows of the cache, but has 8.");
  EXPECT_EQ(refuse({-1}, token, token),
            "[kv_write] slot_mapping must lie in [0, 8), the rows of the cache, but has -1.");
}

}  // namespace
}  // namespace vllm_metal
