// SPDX-License-Identifier: Apache-2.0
// Times the GPU kernels of paged attention, bfloat16: microseconds a layer of decode attention, of
// prefill attention and of writing, in a chain of layers that are evaluated together, and the share
// of the memory bandwidth or the arithmetic that this is. Prints JSON.
// Usage: gpu_attention [turns [fallback]]; fallback: the same in MLX's own ops.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/device_kernels.h"
#include "kernels/kv_write.h"
#include "kernels/varlen_attention.h"

namespace vllm_metal {
namespace {

constexpr int kBlockSize = 16;

struct Case {
  int num_heads, num_kv_heads, head_dim;
  int batch, context_len, num_queries;

  int64_t cache_bytes() const {  // keys and values of a layer
    return int64_t{batch} * context_len * num_kv_heads * head_dim * 4;
  }
  // Multiplications and additions of the scores and values that are not masked.
  double operations() const {
    const double seen = num_queries * (context_len - (num_queries - 1) / 2.0);
    return 4.0 * batch * seen * num_heads * head_dim;
  }
};

struct Cache {
  mx::array keys, values;
};

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median_of(int turns, const std::function<double()>& measure) {
  measure();
  measure();  // the second is the first with everything compiled
  std::vector<double> values;
  for (int i = 0; i < turns; ++i) values.push_back(measure());
  std::nth_element(values.begin(), values.begin() + turns / 2, values.end());
  return values[turns / 2];
}

BatchLayout layout_of(const Case& c) {
  const int blocks = (c.context_len + kBlockSize - 1) / kBlockSize;
  std::vector<int32_t> starts{0}, tables(static_cast<size_t>(c.batch) * blocks), slots;
  std::iota(tables.begin(), tables.end(), 0);
  std::shuffle(tables.begin(), tables.end(), std::mt19937(1));
  for (int i = 0; i < c.batch; ++i) {
    starts.push_back(starts.back() + c.num_queries);
    for (int t = c.context_len - c.num_queries; t < c.context_len; ++t)
      slots.push_back(tables[i * blocks + t / kBlockSize] * kBlockSize + t % kBlockSize);
  }
  return BatchLayout(starts, std::vector<int32_t>(c.batch, c.context_len), slots, tables,
                     kBlockSize);
}

mx::array filled(const mx::Shape& shape) {
  mx::array result = mx::astype(mx::random::normal(shape), mx::bfloat16);
  mx::eval(result);
  return result;
}

double read_gb_per_second() {
  const mx::array memory = mx::ones({1 << 10, 1 << 20}, mx::bfloat16);
  mx::eval(memory);
  return memory.nbytes() / 1e9 /
         median_of(5, [&] { return seconds_of([&] { mx::eval(mx::max(memory, 1)); }); });
}

void measure(const Case& c, int turns, double roof, bool last) {
  // More than a cache of the device holds, and enough layers to hide the start of an evaluation.
  const int num_caches =
      static_cast<int>(std::clamp<int64_t>((int64_t{1} << 30) / c.cache_bytes(), 1, 16));
  const int num_layers = std::max(16, num_caches);
  const int rows = c.batch * ((c.context_len + kBlockSize - 1) / kBlockSize) * kBlockSize;
  std::vector<Cache> caches;
  for (int i = 0; i < num_caches; ++i)
    caches.push_back(
        {filled({rows, c.num_kv_heads, c.head_dim}), filled({rows, c.num_kv_heads, c.head_dim})});
  const BatchLayout layout = layout_of(c);
  const int num_tokens = layout.num_tokens();
  const mx::array queries = filled({num_tokens, c.num_heads, c.head_dim});
  const mx::array tokens = filled({num_tokens, c.num_kv_heads, c.head_dim});
  const AttentionOptions options{.scale = 1 / std::sqrt(static_cast<float>(c.head_dim))};
  const double attention = median_of(turns, [&] {
    return seconds_of([&] {
             mx::array x =
                 queries;  // each layer's output is the next one's queries: none run at once
             for (int i = 0; i < num_layers; ++i) {
               Cache& cache = caches[i % num_caches];
               x = varlen_attention(x, {cache.keys, cache.values, layout}, options);
             }
             mx::eval(x);
           }) /
           num_layers;
  });
  const double write = median_of(turns, [&] {
    return seconds_of([&] {
             std::vector<mx::array> written;
             for (int i = 0; i < num_layers; ++i) {
               Cache& cache = caches[i % num_caches];
               KVView view{cache.keys, cache.values, layout};
               kv_write(view, tokens, tokens);
               written.insert(written.end(), {cache.keys, cache.values});
             }
             mx::eval(written);
           }) /
           num_layers;
  });
  const double gb = c.cache_bytes() / 1e9 / attention;
  std::printf(
      "    {\"heads\": \"%d/%d x %d\", \"batch\": %d, \"context_len\": %d, "
      "\"num_queries\": %d, \"attention_us\": %.1f, \"gb_per_s\": %.0f, "
      "\"of_memory_read\": %.2f, \"tflop_per_s\": %.1f, \"write_us\": %.1f}%s\n",
      c.num_heads, c.num_kv_heads, c.head_dim, c.batch, c.context_len, c.num_queries,
      attention * 1e6, gb, gb / roof, c.operations() / attention / 1e12, write * 1e6,
      last ? "" : ",");
  std::fflush(stdout);
}

}  // namespace
}  // namespace vllm_metal

int main(int argc, char** argv) {
  using namespace vllm_metal;
  const int turns = argc > 1 ? std::max(1, std::atoi(argv[1])) : 9;
  set_device_kernels_enabled(argc < 3 || std::string(argv[2]) != "fallback");
  mx::set_default_device(mx::Device::gpu);
  const double roof = read_gb_per_second();
  std::printf("{\n  \"our_kernels\": %s, \"memory_read_gb_per_s\": %.0f,\n  \"cases\": [\n",
              use_gpu_kernels() ? "true" : "false", roof);
  const std::vector<Case> cases = {
      {32, 8, 128, 1, 1024, 1},  {32, 8, 128, 1, 8192, 1},    {32, 8, 128, 8, 2048, 1},
      {32, 8, 128, 32, 2048, 1}, {32, 8, 128, 64, 8192, 1},   {9, 3, 64, 32, 1024, 1},
      {16, 8, 256, 16, 2048, 1}, {32, 8, 128, 1, 2048, 2048}, {32, 8, 128, 4, 8192, 512}};
  for (size_t i = 0; i < cases.size(); ++i) measure(cases[i], turns, roof, i + 1 == cases.size());
  std::printf("  ]\n}\n");
  return 0;
}
