// SPDX-License-Identifier: Apache-2.0
#include "kernels/split_rotary.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <stdexcept>

#include "kernels/kv_write.h"
#include "kernels/table_cases.h"
#include "selftest/rotary_angles.h"

namespace vllm_metal {
namespace {

using namespace testing_support;
using selftest::rotary_angles;

// x * cos + rotate_half(x) * sin with cos and sin repeated for both halves, as Hugging Face
// writes it, in float64.
std::vector<double> rotated(const std::vector<double>& head, const double* cos_sin,
                            int rotary_dim) {
  std::vector<double> result = head;
  const int half = rotary_dim / 2;
  for (int i = 0; i < rotary_dim; ++i) {
    const double rotate_half = i < half ? -head[i + half] : head[i - half];
    result[i] = head[i] * cos_sin[i % half] + rotate_half * cos_sin[half + i % half];
  }
  return result;
}

struct Reference {
  std::vector<double> queries, keys, values;
};

Reference reference(const mx::array& qkv, const mx::array& cos_sin, const HeadCounts& heads) {
  const auto x = values_of(qkv);
  const auto table = values_of(cos_sin);
  Reference result;
  size_t next = 0;
  for (int token = 0; token < qkv.shape(0); ++token) {
    for (int head = 0; head < heads.num_heads + 2 * heads.num_kv_heads; ++head) {
      std::vector<double> values(x.begin() + next, x.begin() + next + heads.head_dim);
      next += heads.head_dim;
      const bool is_query = head < heads.num_heads;
      const bool is_value = head >= heads.num_heads + heads.num_kv_heads;
      if (!is_value)
        values = rotated(values, table.data() + token * cos_sin.shape(1), cos_sin.shape(1));
      auto& target = is_query ? result.queries : is_value ? result.values : result.keys;
      target.insert(target.end(), values.begin(), values.end());
    }
  }
  return result;
}

void expect_matches(const QueryKeyValue& result, const Reference& expected, Tolerance tolerance) {
  expect_close(result.queries, expected.queries, tolerance);
  expect_close(result.keys, expected.keys, tolerance);
  EXPECT_EQ(values_of(result.values), expected.values);
}

void expect_matches(const QueryKeyValue& result, const Reference& expected) {
  expect_matches(result, expected, tolerance_of(result.queries.dtype()));
}

class SplitRotary : public KernelTestP {};
INSTANTIATE_KERNEL_TESTS(SplitRotary);

TEST_P(SplitRotary, MatchesReference) {
  for (const auto& [heads, rotary_dim] : std::vector<std::pair<HeadCounts, int>>{{{9, 3, 64}, 64},
                                                                                 {{4, 4, 8}, 8},
                                                                                 {{2, 1, 24}, 24},
                                                                                 {{3, 1, 80}, 32},
                                                                                 {{2, 2, 96}, 18},
                                                                                 {{1, 1, 6}, 2},
                                                                                 {{2, 1, 16}, 0}}) {
    const int width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim;
    const auto qkv = random_array({7, width}, dtype(), 1);
    const auto cos_sin = rotary_angles(7, rotary_dim, 1000);
    const auto result = split_rotary(qkv, cos_sin, heads);
    EXPECT_EQ(result.queries.shape(), (mx::Shape{7, heads.num_heads, heads.head_dim}));
    EXPECT_EQ(result.keys.shape(), (mx::Shape{7, heads.num_kv_heads, heads.head_dim}));
    EXPECT_EQ(result.values.shape(), (mx::Shape{7, heads.num_kv_heads, heads.head_dim}));
    EXPECT_EQ(result.queries.dtype(), dtype());
    expect_matches(result, reference(qkv, cos_sin, heads));
  }
}

// On the CPU, where MLX compiles the same graph with a C++ compiler.
TEST_P(SplitRotary, CompiledItIsTheSame) {
  for (int num_tokens : {1, 7}) {  // compiled once for all shapes
    for (const HeadCounts& heads : {HeadCounts{9, 3, 64}, HeadCounts{4, 4, 8}}) {
      const int width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim;
      const auto wide = random_array({num_tokens, width + 5}, dtype(), 1);
      const auto qkv = mx::slice(wide, {0, 3}, {num_tokens, width + 3});
      const auto cos_sin = rotary_angles(num_tokens, heads.head_dim, 1000);
      const auto result = split_rotary_compiled(qkv, cos_sin, heads);
      EXPECT_EQ(result.keys.shape(), (mx::Shape{num_tokens, heads.num_kv_heads, heads.head_dim}));
      EXPECT_EQ(result.queries.dtype(), dtype());
      expect_matches(result, reference(qkv, cos_sin, heads));
    }
  }
}

TEST_P(SplitRotary, ManyTokensOnSeveralThreads) {
  const HeadCounts heads{9, 3, 64};
  const auto qkv = random_array({150, 960}, dtype(), 2);
  const auto cos_sin = rotary_angles(150, 64, 0);
  expect_matches(split_rotary(qkv, cos_sin, heads), reference(qkv, cos_sin, heads));
}

TEST_P(SplitRotary, ReadsStridedRows) {
  const HeadCounts heads{2, 1, 16};
  const auto wide = random_array({5, 100}, dtype(), 3);
  const auto slice = mx::slice(wide, {0, 20}, {5, 84});
  const auto transposed = mx::transpose(random_array({64, 5}, dtype(), 4));
  const auto cos_sin = mx::slice(rotary_angles(10, 16, 3), {0, 0}, {10, 16}, {2, 1});
  for (const auto& qkv : {slice, transposed})
    expect_matches(split_rotary(qkv, cos_sin, heads), reference(qkv, cos_sin, heads));
}

TEST_P(SplitRotary, FallbackAgrees) {
  for (int rotary_dim : {0, 12, 24}) {
    const HeadCounts heads{4, 2, 24};
    const auto qkv = random_array({3, 192}, dtype(), 5);
    const auto cos_sin = rotary_angles(3, rotary_dim, 17);
    const auto expected = split_rotary_fallback(qkv, cos_sin, heads);
    expect_matches(split_rotary_fallback(qkv, cos_sin, heads), reference(qkv, cos_sin, heads));
    expect_matches(
        split_rotary(qkv, cos_sin, heads),
        {values_of(expected.queries), values_of(expected.keys), values_of(expected.values)},
        fallback_tolerance_of(dtype()));
  }
}

TEST_P(SplitRotary, OddSizesWhereverTheyLie) {
  for (int head_dim : kOddSizes) {
    for (const auto& [num_heads, num_kv_heads] : {std::pair{1, 1}, {7, 1}, {6, 3}}) {
      for (Placement placement : kPlacements) {
        const HeadCounts heads{num_heads, num_kv_heads, head_dim};
        const int num_tokens = num_heads == 6 ? 33 : num_heads;
        const int width = (num_heads + 2 * num_kv_heads) * head_dim;
        SCOPED_TRACE(testing::Message() << num_tokens << " tokens, " << num_heads << " heads of "
                                        << head_dim << ", " << text_of(placement));
        const auto qkv = placed(random_array({num_tokens, width}, dtype(), 20), placement);
        for (int rotary_dim : {head_dim / 2 * 2, head_dim / 4 * 2}) {
          const auto cos_sin = placed(rotary_angles(num_tokens, rotary_dim, 5), placement);
          const auto expected = reference(qkv, cos_sin, heads);
          expect_matches(split_rotary(qkv, cos_sin, heads), expected);
          expect_matches(split_rotary_fallback(qkv, cos_sin, heads), expected);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

class SplitRotaryOnce : public KernelTest {};

TEST_F(SplitRotaryOnce, IsOneNode) {
  const auto qkv = random_array({2, 64}, mx::float32, 1);
  const auto result = split_rotary(qkv, rotary_angles(2, 16, 0), {2, 1, 16});
  EXPECT_EQ(result.queries.primitive_id(), result.keys.primitive_id());
  EXPECT_EQ(result.queries.primitive_id(), result.values.primitive_id());
  EXPECT_EQ(result.queries.inputs()[0].id(), qkv.id());
}

TEST_F(SplitRotaryOnce, ZeroTokens) {
  const auto result = split_rotary(mx::zeros({0, 64}), mx::zeros({0, 16}), {2, 1, 16});
  EXPECT_EQ(values_of(result.queries).size(), 0u);
  EXPECT_EQ(values_of(result.values).size(), 0u);
}

TEST_F(SplitRotaryOnce, RefusesWhatDoesNotFit) {
  const auto refuse = [](const mx::array& qkv, const mx::array& cos_sin, HeadCounts heads) {
    return message_of<std::invalid_argument>([&] { split_rotary(qkv, cos_sin, heads); });
  };
  EXPECT_EQ(refuse(mx::zeros({2, 60}), mx::zeros({2, 16}), {2, 1, 16}),
            "[split_rotary] qkv must have shape (num_tokens,64) for 2 + 2 * 1 heads of 16 but has "
            "(2,60).");
  EXPECT_EQ(refuse(mx::zeros({2, 64}), mx::zeros({3, 16}), {2, 1, 16}),
            "[split_rotary] cos_sin must have shape (2,rotary_dim) with an even rotary_dim of at "
            "most 16 but has (3,16).");
  EXPECT_EQ(refuse(mx::zeros({2, 64}), mx::zeros({2, 18}), {2, 1, 16}),
            "[split_rotary] cos_sin must have shape (2,rotary_dim) with an even rotary_dim of at "
            "most 16 but has (2,18).");
  EXPECT_EQ(refuse(mx::zeros({2, 64}), mx::zeros({2, 16}, mx::float16), {2, 1, 16}),
            "[split_rotary] cos_sin must be float32 but is float16.");
  EXPECT_EQ(refuse(mx::zeros({2, 64}), mx::zeros({2, 16}), {2, 0, 16}),
            "[split_rotary] num_heads, num_kv_heads and head_dim must be positive but are 2, 0 "
            "and 16.");
}

// ---- Into the cache ----

struct Cache {
  explicit Cache(const HeadCounts& heads, mx::Dtype dtype, int num_rows = 60)
      : keys(random_array({num_rows, heads.num_kv_heads, heads.head_dim}, dtype, 100)),
        values(random_array({num_rows, heads.num_kv_heads, heads.head_dim}, dtype, 101)) {
    mx::eval(keys, values);
  }
  mx::array keys, values;
};

// One request whose tokens go to the given rows.
BatchLayout layout_of(std::vector<int32_t> slots) {
  const auto num_tokens = static_cast<int32_t>(slots.size());
  return BatchLayout({0, num_tokens}, {num_tokens}, std::move(slots), {0}, 0);
}

std::vector<int32_t> shuffled_slots(int num_tokens, int num_rows) {
  std::vector<int32_t> slots(num_rows);
  std::iota(slots.begin(), slots.end(), 0);
  std::shuffle(slots.begin(), slots.end(), std::mt19937(num_tokens));
  slots.resize(num_tokens);
  return slots;
}

TEST_P(SplitRotary, WritesToTheCacheWhatTheTwoOpsDo) {
  for (const HeadCounts& heads :
       {HeadCounts{9, 3, 64}, HeadCounts{7, 1, 33}, HeadCounts{4, 4, 24}, HeadCounts{1, 1, 2}}) {
    for (int num_tokens : {1, 7, 40}) {
      for (Placement placement : kPlacements) {
        SCOPED_TRACE(testing::Message() << num_tokens << " tokens, heads of " << heads.head_dim
                                        << ", " << text_of(placement));
        const int width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim;
        const auto qkv = placed(random_array({num_tokens, width}, dtype(), 20), placement);
        const auto cos_sin =
            placed(rotary_angles(num_tokens, heads.head_dim / 2 * 2, 5), placement);
        const BatchLayout layout = layout_of(shuffled_slots(num_tokens, 60));
        Cache one(heads, dtype()), two(heads, dtype()), fallback(heads, dtype());
        KVView view{one.keys, one.values, layout}, other{two.keys, two.values, layout};
        const auto queries = rotary_kv_write(qkv, cos_sin, heads, view);
        const auto expected = split_rotary(qkv, cos_sin, heads);
        kv_write(other, expected.keys, expected.values);
        expect_equal(queries, expected.queries);
        expect_equal(one.keys, two.keys);
        expect_equal(one.values, two.values);

        set_device_kernels_enabled(false);
        KVView fallback_view{fallback.keys, fallback.values, layout};
        const auto fallback_queries = rotary_kv_write(qkv, cos_sin, heads, fallback_view);
        set_device_kernels_enabled(true);
        expect_close(fallback_queries, values_of(queries), fallback_tolerance_of(dtype()));
        expect_close(fallback.keys, values_of(one.keys), fallback_tolerance_of(dtype()));
        expect_equal(fallback.values, one.values);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(SplitRotaryOnce, WritesTheCacheInPlaceAndInOneNode) {
  const HeadCounts heads{2, 1, 16};
  Cache cache(heads, mx::float32);
  const void* memory = cache.keys.data<void>();
  const auto qkv = random_array({2, 64}, mx::float32, 1);
  const BatchLayout layout = layout_of({4, 2});
  KVView view{cache.keys, cache.values, layout};
  const auto queries = rotary_kv_write(qkv, rotary_angles(2, 16, 0), heads, view);
  EXPECT_EQ(queries.primitive_id(), cache.keys.primitive_id());
  EXPECT_EQ(queries.primitive_id(), cache.values.primitive_id());
  EXPECT_EQ(queries.inputs()[0].id(), qkv.id());
  mx::eval(queries, cache.keys, cache.values);
  EXPECT_EQ(cache.keys.data<void>(), memory);
}

TEST_F(SplitRotaryOnce, RefusesACacheThatDoesNotFit) {
  const HeadCounts heads{2, 1, 16};
  const auto refuse = [&](Cache cache, std::vector<int32_t> slots) {
    const BatchLayout layout = layout_of(std::move(slots));
    KVView view{cache.keys, cache.values, layout};
    return message_of<std::invalid_argument>(
        [&] { rotary_kv_write(mx::zeros({2, 64}), mx::zeros({2, 16}), heads, view); });
  };
  EXPECT_EQ(refuse(Cache(heads, mx::float32), {1, 60}),
            "[rotary_kv_write] slot_mapping must lie in [0, 60), the rows of the cache, but has "
            "60.");
  EXPECT_EQ(refuse(Cache(heads, mx::float32), {1, 2, 3}),
            "[rotary_kv_write] qkv must have shape (3,64) but has (2,64).");
  EXPECT_EQ(refuse(Cache(heads, mx::float16), {1, 2}),
            "[rotary_kv_write] the cache must be float32 but is float16.");
  EXPECT_EQ(refuse(Cache({2, 2, 16}, mx::float32), {1, 2}),
            "[rotary_kv_write] the key cache must have shape (60,1,16) but has (60,2,16).");
}

}  // namespace
}  // namespace vllm_metal
