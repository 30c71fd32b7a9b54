// SPDX-License-Identifier: Apache-2.0
// Times attention of one new token a request (or of a chunk) over caches of several layers, so that
// none stays in a cache near the core, against this machine's memory reads.
// Usage: bench_attention [layers] [num_heads] [num_kv_heads] [head_dim]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "kernels/varlen_attention.h"

namespace vllm_metal {
namespace {

struct Shape {
  int layers = 30;
  int num_heads = 9;
  int num_kv_heads = 3;
  int head_dim = 64;
};

struct Case {
  int num_requests;
  int num_queries;  // of each request
  int context;
  int block_size;  // 0: contiguous
};

BatchLayout layout_of(const Case& c) {
  std::vector<int32_t> query_starts(c.num_requests + 1), tables;
  for (int r = 0; r <= c.num_requests; ++r) query_starts[r] = r * c.num_queries;
  const int blocks = c.block_size == 0 ? 1 : (c.context + c.block_size - 1) / c.block_size;
  for (int r = 0; r < c.num_requests; ++r) {
    // Blocks of requests alternate, as those of requests that grow together do.
    for (int b = 0; b < blocks; ++b)
      tables.push_back(c.block_size == 0 ? r * c.context : b * c.num_requests + r);
  }
  const std::vector<int32_t> slots(c.num_requests * c.num_queries, 0);
  return BatchLayout(query_starts, std::vector<int32_t>(c.num_requests, c.context), slots, tables,
                     c.block_size);
}

mx::array filled(mx::Shape shape) {
  mx::array result = mx::astype(mx::random::normal(std::move(shape)), mx::bfloat16);
  mx::eval(result);
  return result;
}

// Seconds of one layer.
double seconds_of(const Shape& shape, const Case& c) {
  const BatchLayout layout = layout_of(c);
  const int num_rows = c.num_requests * (c.context + std::max(c.block_size, 1));
  std::vector<mx::array> keys, values;
  for (int i = 0; i < shape.layers; ++i) {
    keys.push_back(filled({num_rows, shape.num_kv_heads, shape.head_dim}));
    values.push_back(filled({num_rows, shape.num_kv_heads, shape.head_dim}));
  }
  const mx::array queries =
      filled({c.num_requests * c.num_queries, shape.num_heads, shape.head_dim});
  double best = 1e9;
  for (int turn = 0; turn < 7; ++turn) {
    const auto start = std::chrono::steady_clock::now();
    mx::array x = queries;
    for (int i = 0; i < shape.layers; ++i)
      x = varlen_attention(x, {keys[i], values[i], layout}, {.scale = 0.125f});
    mx::eval(x);
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best / shape.layers;
}

int run(int argc, char** argv) {
  Shape shape;
  if (argc > 1) shape.layers = std::atoi(argv[1]);
  if (argc > 2) shape.num_heads = std::atoi(argv[2]);
  if (argc > 3) shape.num_kv_heads = std::atoi(argv[3]);
  if (argc > 4) shape.head_dim = std::atoi(argv[4]);
  mx::set_default_device(mx::Device::cpu);
  const std::vector<Case> cases = {{1, 1, 128, 0},   {1, 1, 512, 0},   {1, 1, 2048, 0},
                                   {8, 1, 128, 0},   {8, 1, 512, 0},   {32, 1, 128, 0},
                                   {32, 1, 512, 0},  {8, 1, 512, 16},  {32, 1, 512, 16},
                                   {1, 128, 128, 0}, {8, 128, 128, 0}, {1, 512, 2048, 0}};
  std::printf("%d layers, %d heads, %d key heads, head_dim %d, bfloat16\n", shape.layers,
              shape.num_heads, shape.num_kv_heads, shape.head_dim);
  for (const Case& c : cases) {
    const double seconds = seconds_of(shape, c);
    const double keys = static_cast<double>(c.num_requests) * c.context;
    const double bytes = keys * shape.num_kv_heads * shape.head_dim * 4;
    // Pairs of a query and a key it attends to.
    const double pairs = static_cast<double>(c.num_requests) * c.num_queries *
                         (c.context - 0.5 * (c.num_queries - 1));
    const double flops = pairs * shape.num_heads * shape.head_dim * 4;
    std::printf(
        "%3d requests  %4d queries  context %5d  block %3d  %9.1f us  %6.1f GB/s  %6.1f GFLOP/s\n",
        c.num_requests, c.num_queries, c.context, c.block_size, seconds * 1e6,
        bytes / seconds / 1e9, flops / seconds / 1e9);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace vllm_metal

int main(int argc, char** argv) { return vllm_metal::run(argc, argv); }
