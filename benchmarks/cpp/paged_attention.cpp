// SPDX-License-Identifier: Apache-2.0
// Times a layer's share of a decode step, bfloat16: writing the new tokens and attending to the
// cache, paged against contiguous and against gathering the blocks for MLX's own attention; and
// writes by the size of the pool, with two steps in flight. Prints JSON, progress to stderr.
// Usage: paged_attention [--quick] [--turns N] [--device cpu|gpu]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <numeric>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/huge_pages.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel_for.h"
#include "kernels/kv_write.h"
#include "kernels/varlen_attention.h"
#include "memory_read.h"

namespace vllm_metal {
namespace {

struct Settings {
  bool quick = false;
  int turns = 7;
  mx::Device device = mx::Device::cpu;
};

struct Heads {
  int num_heads;
  int num_kv_heads;
  int head_dim;
};

struct Case {
  Heads heads;
  int batch;
  int context_len;

  int64_t cache_bytes() const {  // keys and values of a layer
    return int64_t{batch} * context_len * heads.num_kv_heads * heads.head_dim * 4;
  }
};

struct Cache {
  mx::array keys;
  mx::array values;
};

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// ---- What the machine reads ----

double read_gb_per_second(const Settings& settings) {
  if (settings.device == mx::Device::cpu)
    return static_cast<double>(kReadBytes) / 1e9 / seconds_of(read_memory);
  static const mx::array memory = mx::ones({256, 1 << 20}, mx::bfloat16);
  mx::eval(memory);
  return static_cast<double>(memory.nbytes()) / 1e9 /
         seconds_of([&] { mx::eval(mx::sum(memory, 1)); });
}

// ---- Attention and writes by batch and length ----

// One new token for each request, whose keys lie in one range, or in blocks in random order.
BatchLayout layout_of(const Case& c, int block_size) {
  std::vector<int32_t> starts(c.batch + 1), tables, slots;
  std::iota(starts.begin(), starts.end(), 0);
  if (block_size == 0) {
    for (int i = 0; i < c.batch; ++i) tables.push_back(i * c.context_len);
  } else {
    tables.resize(static_cast<size_t>(c.batch) * c.context_len / block_size);
    std::iota(tables.begin(), tables.end(), 0);
    std::shuffle(tables.begin(), tables.end(), std::mt19937(1));
  }
  const int blocks = static_cast<int>(tables.size()) / c.batch;
  for (int i = 0; i < c.batch; ++i) {
    slots.push_back(block_size == 0 ? tables[i] + c.context_len - 1
                                    : tables[(i + 1) * blocks - 1] * block_size + block_size - 1);
  }
  return BatchLayout(starts, std::vector<int32_t>(c.batch, c.context_len), slots, tables,
                     block_size);
}

mx::array filled(const mx::Shape& shape) {
  mx::array result = mx::full(shape, 0.25f, mx::bfloat16);
  mx::eval(result);
  return result;
}

mx::array filled_in_huge_pages(const mx::Shape& shape) {
  mx::array result = uninitialized_in_huge_pages(shape, mx::bfloat16);
  std::fill_n(result.data<mx::bfloat16_t>(), result.size(), mx::bfloat16_t(0.25f));
  return result;
}

// Enough layers that none stays in a cache near the core, but no more than a model has.
std::vector<Cache> make_caches(const Case& c) {
  const int64_t layers = std::clamp<int64_t>((int64_t{256} << 20) / c.cache_bytes(), 1, 30);
  const mx::Shape shape{c.batch * c.context_len, c.heads.num_kv_heads, c.heads.head_dim};
  std::vector<Cache> caches;
  for (int64_t i = 0; i < layers; ++i)
    caches.push_back({filled_in_huge_pages(shape), filled_in_huge_pages(shape)});
  return caches;
}

float scale_of(const Heads& heads) { return 1 / std::sqrt(static_cast<float>(heads.head_dim)); }

// Attention without a kernel for block tables: the blocks of all requests in the order of their
// tokens, then MLX's own attention.
mx::array gather_and_attend(const mx::array& queries, const Cache& cache,
                            const BatchLayout& layout) {
  const auto gathered = [&](const mx::array& rows) {
    const mx::array blocks =
        mx::take(mx::unflatten(rows, 0, {-1, layout.block_size}), layout.block_tables_array, 0);
    return mx::transpose(mx::flatten(blocks, 1, 2), {0, 2, 1, 3});
  };
  const mx::array attended = mx::fast::scaled_dot_product_attention(
      mx::expand_dims(queries, 2), gathered(cache.keys), gathered(cache.values),
      1 / std::sqrt(static_cast<float>(queries.shape(2))));
  return mx::squeeze(attended, 2);
}

struct Result {
  const char* layout;
  int block_size;
  std::vector<double> attention, write;  // seconds a layer, one a turn
};

// Each layer's output is the next one's queries, so that no two run at once.
double attend_all(const Case& c, std::vector<Cache>& caches, const BatchLayout& layout,
                  bool gather) {
  mx::array x = filled({c.batch, c.heads.num_heads, c.heads.head_dim});
  const double seconds = seconds_of([&] {
    for (Cache& cache : caches) {
      x = gather ? gather_and_attend(x, cache, layout)
                 : varlen_attention(x, {cache.keys, cache.values, layout},
                                    {.scale = scale_of(c.heads)});
    }
    mx::eval(x);
  });
  return seconds / static_cast<double>(caches.size());
}

double write_all(const Case& c, std::vector<Cache>& caches, const BatchLayout& layout) {
  const mx::array tokens = filled({c.batch, c.heads.num_kv_heads, c.heads.head_dim});
  const double seconds = seconds_of([&] {
    std::vector<mx::array> written;
    for (Cache& cache : caches) {
      KVView view{cache.keys, cache.values, layout};
      kv_write(view, tokens, tokens);
      written.insert(written.end(), {cache.keys, cache.values});
    }
    mx::eval(written);
  });
  return seconds / static_cast<double>(caches.size());
}

// All layouts by turns; `reads` gets what the machine read in each of them, GB/s.
std::vector<Result> measure(const Case& c, const Settings& settings, std::vector<double>& reads) {
  auto caches = make_caches(c);
  std::vector<Result> results{{"contiguous", 0, {}, {}},
                              {"paged", 16, {}, {}},
                              {"paged", 32, {}, {}},
                              {"gather", 16, {}, {}}};
  for (int turn = -1; turn < settings.turns; ++turn) {  // the first is for warmth
    const double read = read_gb_per_second(settings);
    if (turn >= 0) reads.push_back(read);
    for (Result& result : results) {
      const BatchLayout layout = layout_of(c, result.block_size);
      const bool gather = std::string(result.layout) == "gather";
      const double attention = attend_all(c, caches, layout, gather);
      if (turn >= 0) result.attention.push_back(attention);
      if (gather) continue;
      const double write = write_all(c, caches, layout);
      if (turn >= 0) result.write.push_back(write);
    }
  }
  return results;
}

void print_attention(const Settings& settings) {
  bool first = true;
  const std::vector<Heads> heads{{9, 3, 64}, {32, 8, 128}};
  const std::vector<int> batches =
      settings.quick ? std::vector<int>{1, 8} : std::vector<int>{1, 8, 32};
  const std::vector<int> lengths =
      settings.quick ? std::vector<int>{128, 2048} : std::vector<int>{128, 512, 2048, 8192};
  for (const Heads& h : heads) {
    for (int batch : batches) {
      for (int length : lengths) {
        const Case c{h, batch, length};
        std::vector<double> reads;
        for (const Result& result : measure(c, settings, reads)) {
          const double attention = median(result.attention);
          const double gb = static_cast<double>(c.cache_bytes()) / attention / 1e9;
          std::printf(
              "%s\n    {\"num_heads\": %d, \"num_kv_heads\": %d, \"head_dim\": %d, "
              "\"batch\": %d, \"context_len\": %d, \"layout\": \"%s\", "
              "\"block_size\": %d, \"attention_us\": %.2f, \"attention_gb_per_s\": %.2f, "
              "\"memory_read_gb_per_s\": %.2f",
              first ? "" : ",", h.num_heads, h.num_kv_heads, h.head_dim, batch, length,
              result.layout, result.block_size, attention * 1e6, gb, median(reads));
          if (!result.write.empty())
            std::printf(", \"write_us\": %.2f", median(result.write) * 1e6);
          std::printf("}");
          std::fflush(stdout);
          first = false;
        }
        std::fprintf(stderr, "%d/%d x %d, batch %d, context %d\n", h.num_heads, h.num_kv_heads,
                     h.head_dim, batch, length);
      }
    }
  }
}

// ---- Writes by the size of the pool ----

constexpr Heads kPoolHeads{9, 3, 64};
constexpr int kPoolBatch = 8;
constexpr int kPoolBlock = 16;

// A step's tokens: each in a block of its own, all over the pool.
BatchLayout pool_layout(int num_rows, int step, int num_steps) {
  std::vector<int32_t> starts(kPoolBatch + 1), slots, tables;
  std::iota(starts.begin(), starts.end(), 0);
  const int64_t num_blocks = num_rows / kPoolBlock;
  for (int64_t i = 0; i < kPoolBatch; ++i) {
    const int64_t place = i * num_steps + step;
    const auto block = static_cast<int32_t>(place * num_blocks / (int64_t{kPoolBatch} * num_steps));
    tables.push_back(block);
    slots.push_back(block * kPoolBlock);
  }
  return BatchLayout(starts, std::vector<int32_t>(kPoolBatch, 1), slots, tables, kPoolBlock);
}

using WriteOp = void (*)(KVView&, const mx::array&, const mx::array&);

// Seconds a step: a write and its reader, with two steps in flight.
double run_steps(Cache& pool, int num_steps, WriteOp write) {
  const mx::array tokens = filled({kPoolBatch, kPoolHeads.num_kv_heads, kPoolHeads.head_dim});
  const mx::array queries = filled({kPoolBatch, kPoolHeads.num_heads, kPoolHeads.head_dim});
  std::deque<mx::array> in_flight;
  const double seconds = seconds_of([&] {
    for (int step = 0; step < num_steps; ++step) {
      const BatchLayout layout = pool_layout(pool.keys.shape(0), step, num_steps);
      KVView view{pool.keys, pool.values, layout};
      write(view, tokens, tokens);
      in_flight.push_back(varlen_attention(queries, view, {.scale = 1.0f}));
      mx::async_eval(in_flight.back(), pool.keys, pool.values);
      if (in_flight.size() < 3) continue;
      in_flight.front().wait();
      in_flight.pop_front();
    }
    for (mx::array& last : in_flight) last.wait();
  });
  return seconds / num_steps;
}

std::optional<Cache> make_pool(int64_t bytes) {
  const int64_t row_bytes = int64_t{kPoolHeads.num_kv_heads} * kPoolHeads.head_dim * 4;
  const auto num_rows = static_cast<int>(bytes / row_bytes / kPoolBlock * kPoolBlock);
  const mx::Shape shape{num_rows, kPoolHeads.num_kv_heads, kPoolHeads.head_dim};
  try {
    return Cache{uninitialized_in_huge_pages(shape, mx::bfloat16),
                 uninitialized_in_huge_pages(shape, mx::bfloat16)};
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

// Our write on all pools; MLX's on small ones, which it may copy.
void print_pools(const Settings& settings) {
  constexpr int kSteps = 200, kStepsOfMLX = 20;
  constexpr int64_t kLargestForMLX = int64_t{64} << 20;
  const int64_t largest = settings.quick ? int64_t{1} << 30 : int64_t{8} << 30;
  bool first = true;
  for (int64_t bytes = 1 << 20; bytes <= largest; bytes *= 4) {
    if (bytes * 2 >= largest) bytes = largest;
    auto pool = make_pool(bytes);
    if (!pool) break;
    std::vector<double> ours, of_mlx;
    for (int turn = -1; turn < settings.turns; ++turn) {  // the first brings the pages in
      const double seconds = run_steps(*pool, kSteps, kv_write);
      if (turn >= 0) ours.push_back(seconds);
    }
    for (int turn = 0; bytes <= kLargestForMLX && turn < settings.turns; ++turn)
      of_mlx.push_back(run_steps(*pool, kStepsOfMLX, kv_write_fallback));
    std::printf("%s\n    {\"pool_mb\": %lld, \"step_us\": %.2f", first ? "" : ",",
                static_cast<long long>(bytes >> 20), median(ours) * 1e6);
    if (!of_mlx.empty()) std::printf(", \"slice_update_step_us\": %.2f", median(of_mlx) * 1e6);
    std::printf("}");
    std::fflush(stdout);
    first = false;
  }
}

Settings settings_of(int argc, char** argv) {
  Settings settings;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool has_value = i + 1 < argc;
    if (argument == "--quick") {
      settings.quick = true;
      settings.turns = 5;
    } else if (argument == "--turns" && has_value) {
      settings.turns = std::max(1, std::atoi(argv[++i]));
    } else if (argument == "--device" && has_value) {
      settings.device = std::string(argv[++i]) == "gpu" ? mx::Device::gpu : mx::Device::cpu;
    } else {
      throw std::invalid_argument(
          "usage: paged_attention [--quick] [--turns N] [--device cpu|gpu]");
    }
  }
  return settings;
}

void run(const Settings& settings) {
  mx::set_default_device(settings.device);
  const bool on_cpu = settings.device == mx::Device::cpu;
  std::printf(
      "{\n  \"device\": \"%s\", \"threads\": %d, \"dtype\": \"bfloat16\", \"turns\": %d,\n"
      "  \"attention\": [",
      on_cpu ? std::string(cpu::name_of(cpu::current_isa())).c_str() : "gpu",
      on_cpu ? cpu::num_threads() : 0, settings.turns);
  print_attention(settings);
  std::printf("\n  ],\n  \"write_by_pool\": [");
  print_pools(settings);
  std::printf("\n  ]\n}\n");
}

}  // namespace
}  // namespace vllm_metal

int main(int argc, char** argv) {
  try {
    vllm_metal::run(vllm_metal::settings_of(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
