// SPDX-License-Identifier: Apache-2.0
#include "selftest/write_in_place.h"

#include <algorithm>
#include <chrono>
#include <deque>

#include "common/mlx_buffer.h"
#include "common/text.h"
#include "kernels/device_kernels.h"
#include "kernels/varlen_attention.h"
#include "selftest/cache_inputs.h"

namespace vllm_metal::selftest {

namespace {

constexpr int kHeads = 8, kHeadDim = 64, kContext = 16, kSteps = 20;
constexpr uint64_t kRowBytes = uint64_t{2} * kHeads * kHeadDim * 2;  // keys and values of float16
constexpr uint64_t kSmallestPool = uint64_t{1} << 20;
// What steps themselves take: tokens, queries, results and the arrays of layouts. On the CPU a copy
// of the smallest pool's keys alone is twice as much. A GPU gives each small array a page of its
// own and keeps those of all steps under way: there a copy shows from 64 MiB on.
double allowed_bytes(mx::Device device) { return device == mx::Device::cpu ? 256 << 10 : 8 << 20; }

// The row that a step writes: all over the pool, the last row last.
int row_of(int step, int num_rows) {
  const int64_t usable = num_rows - kContext;
  return kContext + static_cast<int>(usable * (step + 1) / kSteps) - 1;
}

mx::array token_of(int step) {
  return mx::full({1, kHeads, kHeadDim}, static_cast<float>(step + 1), mx::float16);
}

// Writes and reads, three steps under way at a time, each holding the cache as it was.
void run_steps(Cache& cache, const PoolScope& scope) {
  struct Step {
    mx::array result, keys_before;
  };
  std::deque<Step> under_way;
  const auto queries = mx::ones({1, kHeads, kHeadDim}, mx::float16);
  const int num_rows = cache.keys.shape(0);
  for (int step = 0; step < kSteps; ++step) {
    const int row = row_of(step, num_rows);
    const BatchLayout layout({0, 1}, {kContext}, {row}, {row - kContext + 1}, 0);
    const mx::array before = cache.keys;
    KVView view{cache.keys, cache.values, layout};
    scope.write(view, token_of(step), -token_of(step));
    under_way.push_back({varlen_attention(queries, view, {.scale = 0.01f}), before});
    mx::async_eval(under_way.back().result, cache.keys, cache.values);
    if (under_way.size() < 3) continue;
    mx::eval(under_way.front().result);
    under_way.pop_front();
  }
  mx::eval(cache.keys, cache.values);
  mx::synchronize();
}

// Each written row holds its token.
void expect_rows(const mx::array& rows, float sign) {
  for (int step = 0; step < kSteps; ++step) {
    const int row = row_of(step, rows.shape(0));
    const auto values = values_of(mx::slice(rows, {row, 0, 0}, {row + 1, kHeads, kHeadDim}));
    const double expected = sign * static_cast<float>(step + 1);
    if (!std::ranges::all_of(values, [&](double value) { return value == expected; }))
      throw std::runtime_error(text("[kv_write] row ", row, " of ", rows.shape(0), " holds ",
                                    values.front(), " and others instead of ", expected, "."));
  }
}

Finding check_pool(mx::Device device, uint64_t bytes, const PoolScope& scope) {
  mx::set_default_device(device);
  const mx::Shape shape{static_cast<int>(bytes / kRowBytes), kHeads, kHeadDim};
  expect_memory(bytes);
  Cache cache{mx::zeros(shape, mx::float16), mx::zeros(shape, mx::float16)};
  mx::eval(cache.keys, cache.values);
  if (device == mx::Device::gpu && !use_gpu_cache_kernels(cache.keys))
    throw Skipped("no kernels of ours on this GPU: MLX's ops write, and copy what is in use");
  release_reusable_memory();  // it counts as taken
  mx::clear_cache();
  const size_t before = memory_use().active;
  mx::reset_peak_memory();
  const auto start = std::chrono::steady_clock::now();
  run_steps(cache, scope);
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  const size_t peak = memory_use().peak;
  const double taken = static_cast<double>(peak - std::min(peak, before));
  expect_rows(cache.keys, 1);
  expect_rows(cache.values, -1);
  return {taken, allowed_bytes(device), text(took.count() / kSteps, " ms a step")};
}

}  // namespace

std::vector<Check> write_in_place_checks(const PoolScope& scope) {
  std::vector<Check> checks;
  for (const auto& [name, device] : {std::pair{"cpu", mx::Device::cpu}, {"gpu", mx::Device::gpu}}) {
    if (const auto reason = why_without_gpu(scope.why_no_gpu);
        reason && device == mx::Device::gpu) {
      checks.push_back(skipped(name, *reason));
      continue;
    }
    const mx::Device on = device;
    for (uint64_t bytes = kSmallestPool; bytes <= scope.max_bytes; bytes *= 4)
      checks.push_back({text(name, "/pool_of_", bytes >> 20, "_MiB"),
                        [=] { return check_pool(on, bytes, scope); }});
  }
  return checks;
}

}  // namespace vllm_metal::selftest
