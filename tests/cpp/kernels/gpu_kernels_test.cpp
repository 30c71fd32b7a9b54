// SPDX-License-Identifier: Apache-2.0
// The ops on the GPU, against float64 and against what must be equal bit for bit. Skipped where
// this build has no kernels for a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/attention_batch.h"
#include "kernels/cache_test.h"
#include "kernels/copy_blocks.h"
#include "kernels/gpu/copy_blocks.h"
#include "kernels/gpu/device.h"
#include "kernels/gpu/varlen_attention.h"
#include "kernels/kv_write.h"
#include "kernels/rms_norm.h"
#include "kernels/split_rotary.h"
#include "kernels/table_cases.h"
#include "kernels/varlen_attention.h"
#include "selftest/rotary_angles.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

const std::vector<mx::Dtype> kDtypes = {mx::float32, mx::float16, mx::bfloat16};

class GpuKernels : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!gpu::kernels_available()) GTEST_SKIP() << "no GPU that this build has kernels for";
    mx::set_default_device(mx::Device::gpu);
    ASSERT_TRUE(use_gpu_kernels());
  }
  void TearDown() override {
    set_device_kernels_enabled(true);
    mx::set_default_device(mx::Device::cpu);
  }
};

// What is in the buffer, wherever the handle has been: pointers of a host would move it there.
const void* memory_of(const mx::array& array) { return array.buffer().ptr(); }

TEST_F(GpuKernels, WritesRowsInPlace) {
  std::vector<int32_t> slots(300);
  std::iota(slots.begin(), slots.end(), 10);
  std::shuffle(slots.begin(), slots.end(), std::mt19937(1));
  for (mx::Dtype dtype : kDtypes) {
    Cache cache = make_cache(320, 3, 80, dtype);
    const auto fused = random_array({300, 9, 80}, dtype, 1);
    const auto keys = mx::slice(fused, {0, 2, 0}, {300, 5, 80});
    const auto values = mx::transpose(random_array({80, 3, 300}, dtype, 2));
    const auto expected_keys = with_rows(values_of(cache.keys), values_of(keys), slots);
    const auto expected_values = with_rows(values_of(cache.values), values_of(values), slots);
    const void* memory = memory_of(cache.keys);
    const mx::array old_handle = cache.keys;
    const BatchLayout layout = layout_of(slots);
    KVView view{cache.keys, cache.values, layout};
    kv_write(view, keys, values);
    mx::eval(cache.keys, cache.values);
    EXPECT_EQ(memory_of(cache.keys), memory);
    EXPECT_EQ(values_of(cache.keys), expected_keys);
    EXPECT_EQ(values_of(cache.values), expected_values);
  }
}

TEST_F(GpuKernels, RotatesAndWritesInPlace) {
  std::vector<int32_t> slots(300);
  std::iota(slots.begin(), slots.end(), 10);
  std::shuffle(slots.begin(), slots.end(), std::mt19937(1));
  const HeadCounts heads{9, 3, 80};
  for (mx::Dtype dtype : kDtypes) {
    for (int rotary_dim : {80, 32}) {
      const auto qkv = random_array({300, 15 * 80}, dtype, 1);
      const auto cos_sin = selftest::rotary_angles(300, rotary_dim, 1000);
      const auto expected = split_rotary_fallback(qkv, cos_sin, heads);
      Cache cache = make_cache(320, 3, 80, dtype);
      const auto keys = with_rows(values_of(cache.keys), values_of(expected.keys), slots);
      const auto values = with_rows(values_of(cache.values), values_of(expected.values), slots);
      const void* memory = memory_of(cache.keys);
      const BatchLayout layout = layout_of(slots);
      KVView view{cache.keys, cache.values, layout};
      const auto queries = rotary_kv_write(qkv, cos_sin, heads, view);
      mx::eval(queries, cache.keys, cache.values);
      EXPECT_EQ(memory_of(cache.keys), memory);
      const Tolerance once = tolerance_of(dtype);
      const Tolerance twice{2 * once.relative, 2 * once.absolute};
      expect_close(values_of(queries), values_of(expected.queries), twice);
      expect_close(values_of(cache.keys), keys, twice);
      EXPECT_EQ(values_of(cache.values), values);
    }
  }
}

TEST_F(GpuKernels, AddsAndNormalizes) {
  for (mx::Dtype dtype : kDtypes) {
    for (int size : {1, 576, 2050, 8192}) {
      const auto weight = random_array({size}, dtype, 1);
      const auto residual = random_array({70, size}, dtype, 2),
                 x = random_array({70, size}, dtype, 3);
      const auto [sum, normalized] = add_rms_norm(x, residual, weight, 1e-5f);
      const auto expected = add_rms_norm_fallback(x, residual, weight, 1e-5f);
      const Tolerance once = tolerance_of(dtype);
      expect_equal(sum, expected.first);
      expect_close(values_of(normalized), values_of(expected.second),
                   {2 * once.relative, 2 * once.absolute});
    }
  }
}

// Each step writes the row that the step before has read, and reads it.
TEST_F(GpuKernels, StepsInFlightKeepTheirOrder) {
  constexpr int kSteps = 60, kRows = 4096;
  const AttentionOptions options{.scale = 0.1f};
  const BatchLayout layout({0, 1}, {kRows}, {kRows - 1}, {0}, 0);
  Cache cache = make_cache(kRows, 4, 64, mx::float16);
  Cache other = make_cache(kRows, 4, 64, mx::float16);
  const void* memory = memory_of(cache.keys);
  std::vector<mx::array> results, expected;
  for (int step = 0; step < kSteps; ++step) {
    const auto tokens = random_array({1, 4, 64}, mx::float16, step, 3.0f);
    const auto queries = random_array({1, 8, 64}, mx::float16, 1000 + step);
    KVView view{cache.keys, cache.values, layout};
    kv_write(view, tokens, tokens);
    results.push_back(varlen_attention(queries, view, options));
    mx::async_eval(results.back(), cache.keys, cache.values);
    KVView other_view{other.keys, other.values, layout};
    kv_write(other_view, tokens, tokens);
    expected.push_back(varlen_attention(queries, other_view, options));
    mx::eval(expected.back());
  }
  mx::eval(results);
  EXPECT_EQ(memory_of(cache.keys), memory);
  for (int step = 0; step < kSteps; ++step) expect_equal(results[step], expected[step]);
}

TEST_F(GpuKernels, CopiesBlocks) {
  for (mx::Dtype dtype : kDtypes) {
    for (int block_size : {8, 16, 128}) {
      for (int head_dim : {3, 64}) {  // 3: a block is no multiple of 16 bytes
        Cache cache = make_cache(7 * block_size, 1, head_dim, dtype);
        Cache other = make_cache(7 * block_size, 1, head_dim, dtype);
        const std::vector<BlockCopy> copies{{3, 0}, {3, 6}, {4, 5}};
        const void* memory = memory_of(cache.keys);
        gpu::copy_blocks(cache.keys, cache.values, copies, block_size);
        copy_blocks_fallback(other.keys, other.values, copies, block_size);
        mx::eval(cache.keys, cache.values);
        EXPECT_EQ(memory_of(cache.keys), memory);
        expect_equal(cache.keys, other.keys);
        expect_equal(cache.values, other.values);
      }
    }
  }
}

struct AttentionCase {
  mx::Dtype dtype;
  HeadShape heads;
  int block_size;
  OptionChoice choice;
  std::vector<RequestShape> requests;

  std::string text() const {
    std::ostringstream out;
    out << dtype << " heads " << heads.num_heads << "/" << heads.num_kv_heads << " of "
        << heads.head_dim << ", block_size " << block_size << ", window " << choice.sliding_window
        << ", soft_cap " << choice.soft_cap << ", sinks " << choice.sinks << ", " << requests.size()
        << " requests from " << requests[0].context_len;
    return out.str();
  }
};

// Sums of 8,192 products in another order than float64 differ by more than one rounding.
Tolerance gpu_tolerance_of(mx::Dtype dtype) {
  if (dtype == mx::float32) return {2e-5, 2e-5};
  return tolerance_of(dtype);
}

void expect_attention(const AttentionCase& one) {
  SCOPED_TRACE(one.text());
  const AttentionInputs inputs = make_inputs(one.requests, one.heads, one.dtype);
  const PlacedBatch batch = place(one.requests, one.block_size);
  expect_close(attend(inputs, batch, one.choice, gpu::varlen_attention),
               attention_reference(inputs, one.choice), gpu_tolerance_of(one.dtype));
}

const std::vector<std::vector<RequestShape>> kBatches = {
    {{1, 1}},
    {{33, 33}},
    {{257, 1}, {256, 1}, {1, 1}, {700, 1}},
    {{300, 45}, {129, 1}, {64, 64}, {515, 3}, {40, 40}, {900, 1}},
};

TEST_F(GpuKernels, AttentionTable) {
  const std::vector<HeadShape> heads = {{4, 4, 64},  {6, 2, 80},   {12, 1, 96},
                                        {8, 2, 128}, {16, 2, 192}, {8, 1, 256}};
  const std::vector<OptionChoice> choices = {
      {}, {.sliding_window = 17}, {.soft_cap = 5.0f}, {.sinks = true}, {300, 20.0f, true}};
  const std::vector<int> block_sizes = {0, 8, 16, 32, 128};
  Rotation rotation;
  for (mx::Dtype dtype : kDtypes)
    for (const HeadShape& shape : heads)
      for (const auto& requests : kBatches)
        for (int block_size : rotation.next(block_sizes, 2))
          for (const OptionChoice& choice : rotation.next(choices, 2)) {
            expect_attention({dtype, shape, block_size, choice, requests});
            if (HasFatalFailure()) return;
          }
}

TEST_F(GpuKernels, AttentionOverLongContexts) {
  for (mx::Dtype dtype : kDtypes)
    expect_attention({dtype, {8, 2, 128}, 16, {}, {{8192, 1}, {4097, 70}, {20000, 1}}});
}

// A request's result is the same whatever else is in the batch, and in any cache.
TEST_F(GpuKernels, AttentionOfARequestIsThatOfItAlone) {
  const std::vector<RequestShape> requests = {{700, 1}, {300, 100}, {4000, 1}, {33, 2}};
  const AttentionInputs inputs = make_inputs(requests, {8, 2, 64}, mx::bfloat16);
  const mx::array together = attend(inputs, place(requests, 16), {}, gpu::varlen_attention);
  expect_equal(attend(inputs, place(requests, 0), {}, gpu::varlen_attention), together);
  const auto starts = query_starts_of(requests);
  for (int i = 0; i < 4; ++i) {
    const AttentionInputs alone = some_of(inputs, i, i + 1);
    expect_equal(attend(alone, place(alone.requests, 16), {}, gpu::varlen_attention),
                 mx::contiguous(tokens_of(together, starts[i], starts[i + 1])));
  }
}

TEST_F(GpuKernels, OtherHeadSizesTakeTheFallback) {
  const std::vector<RequestShape> requests = {{40, 3}, {100, 1}};
  const AttentionInputs inputs = make_inputs(requests, {4, 2, 72}, mx::float16);
  expect_close(attend(inputs, place(requests, 16)), attention_reference(inputs),
               fallback_tolerance_of(mx::float16));
}

// Whichever way the op goes for a batch.
TEST_F(GpuKernels, AttentionOfTheOp) {
  for (mx::Dtype dtype : {mx::float16, mx::bfloat16}) {
    for (const auto& requests : kBatches) {
      const AttentionInputs inputs = make_inputs(requests, {8, 2, 128}, dtype);
      expect_close(attend(inputs, place(requests, 16)), attention_reference(inputs),
                   fallback_tolerance_of(dtype));
    }
  }
}

TEST_F(GpuKernels, NoTokens) {
  Cache cache = make_cache(16, 2, 64, mx::float16);
  const BatchLayout layout({0, 0}, {5}, {}, {0}, 8);
  KVView view{cache.keys, cache.values, layout};
  const mx::array nothing = mx::zeros({0, 2, 64}, mx::float16);
  kv_write(view, nothing, nothing);
  mx::array result = varlen_attention(nothing, view, {.scale = 1.0f});
  mx::eval(result, cache.keys);
  EXPECT_EQ(result.shape(), nothing.shape());
}

}  // namespace
}  // namespace vllm_metal
