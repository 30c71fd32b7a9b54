// SPDX-License-Identifier: Apache-2.0
// The host side of the GPU kernels with the kernels' own text: primitives are evaluated as on a
// GPU, what they launch runs in the harness, and the results are compared with the CPU's ops.
#include <gtest/gtest.h>
#include <mlx/primitives.h>

#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/mlx_buffer.h"
#include "gpu/kernel_sources.h"
#include "kernels/attention_batch.h"
#include "kernels/cache_test.h"
#include "kernels/copy_blocks.h"
#include "kernels/gpu/add_rms_norm.h"
#include "kernels/gpu/copy_blocks.h"
#include "kernels/gpu/device.h"
#include "kernels/gpu/kernel_guard.h"
#include "kernels/gpu/kv_write.h"
#include "kernels/gpu/rotary_kv_write.h"
#include "kernels/gpu/varlen_attention.h"
#include "kernels/kv_write.h"
#include "kernels/rms_norm.h"
#include "kernels/split_rotary.h"
#include "selftest/rotary_angles.h"

namespace gpu_harness {
namespace {

namespace gpu = vllm_metal::gpu;
using gpu::KernelLaunch;

// A launch's arguments as a kernel of the harness takes them.
class Arguments {
 public:
  explicit Arguments(const KernelLaunch& launch) : launch_(launch) {}

  template <typename T>
  CheckedPointer<Space::kDevice, T> pointer(int index) {
    const KernelLaunch::Argument& argument = launch_.arguments().at(index);
    EXPECT_NE(argument.use, KernelLaunch::Use::kValue);
    using Value = std::remove_const_t<T>;
    // A handle of the same memory that is not const, from the first element of its buffer on.
    mlx::core::array array = *argument.array;
    char* data = array.data<char>() + argument.offset;
    const size_t bytes = array.data_size() * array.itemsize() - argument.offset;
    allocations_.push_back(std::make_unique<Allocation>());
    allocations_.back()->name = "argument " + std::to_string(index);
    allocations_.back()->space = Space::kDevice;
    allocations_.back()->size = static_cast<int64_t>(bytes / sizeof(Value));
    if constexpr (!std::is_const_v<T>) {  // what it reads is what it has written, or the host
      allocations_.back()->shadow.resize(bytes / sizeof(Value));
      allocations_.back()->written = true;
    }
    return {reinterpret_cast<Value*>(data), allocations_.back().get()};
  }

  template <typename T>
  T value(int index) const {
    const KernelLaunch::Argument& argument = launch_.arguments().at(index);
    EXPECT_EQ(argument.use, KernelLaunch::Use::kValue);
    T result;
    EXPECT_EQ(argument.value.size(), sizeof(T));
    std::memcpy(&result, argument.value.data(), sizeof(T));
    return result;
  }

  void run(const std::function<void()>& kernel) const {
    launch({static_cast<unsigned>(launch_.groups_x()), static_cast<unsigned>(launch_.groups_y()),
            launch_.threads_per_group()},
           7, kernel);
  }

 private:
  const KernelLaunch& launch_;
  std::vector<std::unique_ptr<Allocation>> allocations_;
};

template <typename T>
void run_kv_write(Arguments& a) {
  const auto keys = a.pointer<const T>(0), values = a.pointer<const T>(1);
  const auto slots = a.pointer<const int>(2);
  const auto key_cache = a.pointer<T>(3), value_cache = a.pointer<T>(4);
  const auto arguments = a.value<gpu::KVWriteArguments>(5);
  a.run([&] { kernels::kv_write<T>(keys, values, slots, key_cache, value_cache, arguments); });
}

template <typename T>
void run_rotary_kv_write(Arguments& a) {
  const auto qkv = a.pointer<const T>(0);
  const auto cos_sin = a.pointer<const float>(1);
  const auto slots = a.pointer<const int>(2);
  const auto key_cache = a.pointer<T>(3), value_cache = a.pointer<T>(4), queries = a.pointer<T>(5);
  const auto arguments = a.value<gpu::RotaryKVWriteArguments>(6);
  a.run([&] {
    kernels::rotary_kv_write<T>(qkv, cos_sin, slots, key_cache, value_cache, queries, arguments);
  });
}

template <typename T>
void run_add_rms_norm(Arguments& a) {
  const auto x = a.pointer<const T>(0), residual = a.pointer<const T>(1);
  const auto weight = a.pointer<const T>(2);
  const auto sums = a.pointer<T>(3), normalized = a.pointer<T>(4);
  const auto arguments = a.value<gpu::AddRmsNormArguments>(5);
  a.run([&] { kernels::add_rms_norm<T>(x, residual, weight, sums, normalized, arguments); });
}

template <typename Word>
void run_copy_blocks(Arguments& a) {
  const auto keys = a.pointer<Word>(0), values = a.pointer<Word>(1);
  const auto pairs = a.pointer<const gpu::BlockPair>(2);
  const auto arguments = a.value<gpu::CopyBlocksArguments>(3);
  a.run([&] { kernels::copy_blocks<Word>(keys, values, pairs, arguments); });
}

template <typename T, int kHeadDim>
void run_prefill(Arguments& a) {
  const auto queries = a.pointer<const T>(0), keys = a.pointer<const T>(1);
  const auto values = a.pointer<const T>(2);
  const auto tables = a.pointer<const int>(3), starts = a.pointer<const int>(4);
  const auto lens = a.pointer<const int>(5);
  const auto sinks = a.pointer<const float>(6);
  const auto tiles = a.pointer<const gpu::PrefillTile>(7);
  const auto outputs = a.pointer<T>(8);
  const auto arguments = a.value<gpu::AttentionArguments>(9);
  a.run([&] {
    kernels::attention_prefill<T, kHeadDim, true>(queries, keys, values, tables, starts, lens,
                                                  sinks, tiles, outputs, arguments);
  });
}

template <typename T, int kHeadDim, int kHeads>
void run_decode(Arguments& a) {
  const auto queries = a.pointer<const T>(0), keys = a.pointer<const T>(1);
  const auto values = a.pointer<const T>(2);
  const auto tables = a.pointer<const int>(3), starts = a.pointer<const int>(4);
  const auto lens = a.pointer<const int>(5);
  const auto sinks = a.pointer<const float>(6);
  const auto works = a.pointer<const gpu::DecodeWork>(7);
  const auto outputs = a.pointer<T>(8);
  const auto arguments = a.value<gpu::AttentionArguments>(9);
  const auto partials = a.pointer<float>(10), sums = a.pointer<float>(11);
  a.run([&] {
    kernels::attention_decode<T, kHeadDim, kHeads>(queries, keys, values, tables, starts, lens,
                                                   sinks, works, outputs, arguments, partials,
                                                   sums);
  });
}

template <typename T, int kHeadDim>
void run_merge(Arguments& a) {
  const auto partials = a.pointer<const float>(0), sums = a.pointer<const float>(1);
  const auto sinks = a.pointer<const float>(2);
  const auto merges = a.pointer<const gpu::MergeWork>(3);
  const auto outputs = a.pointer<T>(4);
  const auto arguments = a.value<gpu::AttentionArguments>(5);
  a.run([&] {
    kernels::attention_merge<T, kHeadDim>(partials, sums, sinks, merges, outputs, arguments);
  });
}

// The instances that the tests below need, by the names that the host makes for them.
const std::map<std::string, void (*)(Arguments&)> kKernels = {
    {"kv_write<float>", run_kv_write<float>},
    {"kv_write<bfloat>", run_kv_write<bfloat>},
    {"rotary_kv_write<float>", run_rotary_kv_write<float>},
    {"rotary_kv_write<half>", run_rotary_kv_write<half>},
    {"rotary_kv_write<bfloat>", run_rotary_kv_write<bfloat>},
    {"add_rms_norm<float>", run_add_rms_norm<float>},
    {"add_rms_norm<half>", run_add_rms_norm<half>},
    {"add_rms_norm<bfloat>", run_add_rms_norm<bfloat>},
    {"copy_blocks<uint4>", run_copy_blocks<uint4>},
    {"copy_blocks<ushort>", run_copy_blocks<ushort>},
    {"attention_prefill<float, 64, true>", run_prefill<float, 64>},
    {"attention_prefill<bfloat, 80, true>", run_prefill<bfloat, 80>},
    {"attention_decode<float, 64, 4>", run_decode<float, 64, 4>},
    {"attention_decode<bfloat, 80, 2>", run_decode<bfloat, 80, 2>},
    {"attention_merge<float, 64>", run_merge<float, 64>},
    {"attention_merge<bfloat, 80>", run_merge<bfloat, 80>},
};

std::vector<std::string> launched;    // expressions, since it was last cleared
std::map<std::string, int> compiled;  // threads a group, by expression; or launched
std::string refused;                  // the expression that does not compile

}  // namespace
}  // namespace gpu_harness

// This program's device. Defined here, kernels/no_gpu is not linked.
namespace vllm_metal::gpu {

bool kernels_available() { return true; }
KernelTarget kernel_target() { return KernelTarget::kMetal; }
mx::array lookup_array(const std::vector<int32_t>& values, const mx::Shape& shape) {
  return mx::array(values.begin(), shape, mx::int32);
}
void compile(const KernelName& name, int threads_per_group) {
  gpu_harness::compiled[name.expression()] = threads_per_group;
  if (name.expression() == gpu_harness::refused) throw std::runtime_error("refused");
}
void allocate(mx::array& output, const mx::Stream&) {
  allocate_from_mlx(output);
  // What no kernel writes must show.
  std::memset(output.data<char>(), 0xff, output.nbytes());
}
void hold(const mx::array&, const mx::Stream&) {}
void watch(const mx::Stream&) {}
void launch(const KernelLaunch& kernel, const mx::Stream&) {
  const std::string expression = kernel.name().expression();
  const auto found = gpu_harness::kKernels.find(expression);
  ASSERT_NE(found, gpu_harness::kKernels.end()) << expression << " is no instance of this test";
  gpu_harness::launched.push_back(expression);
  const auto known =
      gpu_harness::compiled.try_emplace(expression, kernel.threads_per_group()).first;
  EXPECT_EQ(known->second, kernel.threads_per_group()) << expression;
  gpu_harness::Arguments arguments(kernel);
  found->second(arguments);
}

}  // namespace vllm_metal::gpu

namespace vllm_metal {
namespace {

using namespace testing_support;

// Evaluates the node of `array` as a GPU's stream would.
void eval_on_gpu(mx::array& array) {
  std::vector<mx::array> inputs = array.inputs();
  mx::eval(inputs);
  std::vector<mx::array> outputs = array.outputs();
  array.primitive().eval_gpu(inputs, outputs);
  for (mx::array& output : outputs) output.set_status(mx::array::Status::available);
}

class GpuHost : public KernelTest {
 protected:
  GpuHost() { gpu_harness::launched.clear(); }

  static void expect_attention(const std::vector<RequestShape>& requests, const HeadShape& heads,
                               mx::Dtype dtype, int block_size, const OptionChoice& choice) {
    const AttentionInputs inputs = make_inputs(requests, heads, dtype);
    const PlacedBatch batch = place(requests, block_size);
    mx::array keys = fill_cache(batch, inputs.keys), values = fill_cache(batch, inputs.values);
    const KVView view{keys, values, batch.layout};
    const AttentionOptions options = options_of(inputs, choice);
    mx::array actual = gpu::varlen_attention(inputs.queries, view, options);
    eval_on_gpu(actual);
    const mx::array expected = varlen_attention(inputs.queries, view, options);  // on the CPU
    const Tolerance once = tolerance_of(dtype);
    expect_close(actual, values_of(expected), {2 * once.relative, 2 * once.absolute});
  }
};

TEST_F(GpuHost, AttentionOfAMixedBatch) {
  const std::vector<RequestShape> requests = {{70, 1}, {300, 40}, {600, 1}, {5, 5}, {258, 2}};
  expect_attention(requests, {6, 2, 64}, mx::float32, 16, {});
  EXPECT_EQ(gpu_harness::launched, (std::vector<std::string>{"attention_prefill<float, 64, true>",
                                                             "attention_decode<float, 64, 4>",
                                                             "attention_merge<float, 64>"}));
  expect_attention(requests, {4, 2, 80}, mx::bfloat16, 8, {270, 20.0f, true});
}

TEST_F(GpuHost, AttentionOfShortDecodesNeedsNoMerge) {
  expect_attention({{256, 1}, {1, 1}}, {6, 2, 64}, mx::float32, 0, {.sinks = true});
  EXPECT_EQ(gpu_harness::launched, std::vector<std::string>{"attention_decode<float, 64, 4>"});
}

// What is compiled beforehand is what ops launch, with as many threads.
TEST_F(GpuHost, KernelsAreCompiledBeforehand) {
  EXPECT_TRUE(gpu::kernels_allowed(mx::float32, 64));
  const size_t num_compiled = gpu_harness::compiled.size();
  expect_attention({{70, 1}, {300, 40}, {600, 1}}, {6, 2, 64}, mx::float32, 16, {});
  EXPECT_EQ(gpu_harness::compiled.size(), num_compiled);  // launches add what is missing
  gpu_harness::refused = "attention_decode<half, 80, 2>";
  EXPECT_FALSE(gpu::kernels_allowed(mx::float16, 80));
  EXPECT_TRUE(gpu::kernels_allowed(mx::float16, 96));
  gpu_harness::refused.clear();
  EXPECT_FALSE(gpu::kernels_allowed(mx::float16, 80));  // for as long as the process lives
}

TEST_F(GpuHost, LayersShareTheirPlan) {
  const std::vector<RequestShape> requests = {{70, 1}};
  const AttentionInputs inputs = make_inputs(requests, {6, 2, 64}, mx::float32);
  const PlacedBatch batch = place(requests, 16);
  mx::array keys = fill_cache(batch, inputs.keys), values = fill_cache(batch, inputs.values);
  const KVView view{keys, values, batch.layout};
  size_t num_plans = 1;
  for (int window : {0, 0, 8, 0, 8}) {
    gpu::varlen_attention(inputs.queries, view, {.scale = 1.0f, .sliding_window = window});
    if (window == 8) num_plans = 2;
    EXPECT_EQ(batch.layout.gpu_plans.size(), num_plans) << "after window " << window;
  }
}

TEST_F(GpuHost, WritesTokensOfAnyStrides) {
  const std::vector<int32_t> slots{9, 1, 2, 5};
  const BatchLayout layout = layout_of(slots);
  for (mx::Dtype dtype : {mx::float32, mx::bfloat16}) {
    const auto fused = random_array({4, 7, 10}, dtype, 1);
    const auto keys = mx::slice(fused, {0, 1, 0}, {4, 7, 10}, {1, 2, 1});
    const auto values = mx::transpose(random_array({10, 3, 4}, dtype, 2));
    Cache cache = make_cache(10, 3, 10, dtype), other = make_cache(10, 3, 10, dtype);
    const void* memory = cache.keys.data<void>();
    KVView view{cache.keys, cache.values, layout}, other_view{other.keys, other.values, layout};
    gpu::kv_write(view, keys, values);
    eval_on_gpu(cache.keys);
    kv_write(other_view, keys, values);
    EXPECT_EQ(cache.keys.data<void>(), memory);
    expect_equal(cache.keys, other.keys);
    expect_equal(cache.values, other.values);
  }
}

TEST_F(GpuHost, RotatesAndWrites) {
  const std::vector<int32_t> slots{9, 1, 7, 5, 0};
  const BatchLayout layout = layout_of(slots);
  for (mx::Dtype dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    for (const HeadCounts& heads : {HeadCounts{9, 3, 64}, HeadCounts{2, 1, 10}}) {
      for (int rotary_dim : {heads.head_dim, 6, 0}) {
        const int width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim;
        const auto wide = random_array({5, width + 3}, dtype, 1);
        const auto qkv = mx::slice(wide, {0, 2}, {5, width + 2});
        const auto cos_sin = selftest::rotary_angles(5, rotary_dim, 1000);
        Cache cache = make_cache(10, heads.num_kv_heads, heads.head_dim, dtype);
        Cache other = make_cache(10, heads.num_kv_heads, heads.head_dim, dtype);
        const void* memory = cache.keys.data<void>();
        KVView view{cache.keys, cache.values, layout}, other_view{other.keys, other.values, layout};
        mx::array queries = gpu::rotary_kv_write(qkv, cos_sin, heads, view);
        eval_on_gpu(queries);
        const mx::array expected = rotary_kv_write(qkv, cos_sin, heads, other_view);
        EXPECT_EQ(cache.keys.data<void>(), memory);
        expect_close(queries, values_of(expected));
        expect_close(cache.keys, values_of(other.keys));
        expect_equal(cache.values, other.values);
      }
    }
  }
}

// Two tokens of one slot: that they overwrite each other is seen.
TEST_F(GpuHost, RacesOfTheCacheAreSeen) {
  const BatchLayout layout = layout_of({3, 3});
  Cache cache = make_cache(10, 1, 64, mx::float32);
  KVView view{cache.keys, cache.values, layout};
  mx::array queries =
      gpu::rotary_kv_write(random_array({2, 3 * 64}, mx::float32, 1),
                           selftest::rotary_angles(2, 64, 1000), HeadCounts{1, 1, 64}, view);
  const auto message = message_of<gpu_harness::KernelError>([&] { eval_on_gpu(queries); });
  EXPECT_NE(message.find("race"), std::string::npos) << message;
}

TEST_F(GpuHost, AddsAndNormalizes) {
  for (mx::Dtype dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    // Fewer and more elements than a group takes at a time, and no multiple of what a thread does.
    for (int size : {1, 576, 2050}) {
      const auto weight = random_array({size}, dtype, 1);
      const auto residual = random_array({2, 3, size}, dtype, 2);
      const auto wide = random_array({2, 3, size + 5}, dtype, 3);
      const auto x = mx::slice(wide, {0, 0, 2}, {2, 3, size + 2});
      auto [sum, normalized] = gpu::add_rms_norm(x, residual, weight, 1e-5f);
      eval_on_gpu(sum);
      const auto expected = add_rms_norm(x, residual, weight, 1e-5f);
      expect_equal(sum, expected.first);
      const Tolerance once = tolerance_of(dtype);
      expect_close(normalized, values_of(expected.second), {2 * once.relative, 2 * once.absolute});
    }
  }
}

TEST_F(GpuHost, CopiesBlocksInWordsThatFit) {
  const std::vector<BlockCopy> copies{{3, 0}, {3, 6}, {4, 5}};
  for (int head_dim : {3, 64}) {
    Cache cache = make_cache(7 * 9, 1, head_dim, mx::bfloat16);
    Cache other = make_cache(7 * 9, 1, head_dim, mx::bfloat16);
    gpu::copy_blocks(cache.keys, cache.values, copies, 9);
    eval_on_gpu(cache.keys);
    copy_blocks(other.keys, other.values, copies, 9);
    expect_equal(cache.keys, other.keys);
    expect_equal(cache.values, other.values);
  }
  EXPECT_EQ(gpu_harness::launched,
            (std::vector<std::string>{"copy_blocks<ushort>", "copy_blocks<uint4>"}));
}

}  // namespace
}  // namespace vllm_metal
