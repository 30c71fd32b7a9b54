// SPDX-License-Identifier: Apache-2.0
// Times the CPU's matrix products on the shapes of SmolLM2-135M, against what this machine's memory
// and arithmetic units allow. Usage: bench_linear [seconds a case] [isa] [MB of weights]
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "common/mlx.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/parallel_for.h"
#include "memory_read.h"

namespace vllm_metal {
namespace {

double seconds_a_case = 0.3;
double weight_bytes = 64e6;

// On one thread, its own time is taken: other programs that want the core do not count.
double now(bool all_threads) {
  timespec time;
  clock_gettime(all_threads ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Calls `function` on this thread alone (calls from a body run inline), or with the whole pool.
template <typename Function>
void with_threads(bool all, const Function& function) {
  if (all) return function();
  cpu::parallel_for(2, 1, [&](int64_t begin, int64_t) {
    if (begin == 0) function();
  });
}

template <typename Function>
double best_seconds(bool all_threads, const Function& function) {
  double best = 1e9, total = 0;
  for (int i = 0; i < 5 || total < seconds_a_case; ++i) {
    double seconds = 0;
    with_threads(all_threads, [&] {
      const double start = now(all_threads);
      function();
      seconds = now(all_threads) - start;
    });
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

// ---- What the machine allows ----

typedef float Floats __attribute__((vector_size(64)));

double read_bandwidth(bool all) {  // GB/s
  return static_cast<double>(kReadBytes) / best_seconds(all, read_memory) / 1e9;
}

// GFLOP/s of independent fused multiply-adds in registers.
double fma_peak(bool all) {
  constexpr int kChains = 16, kSteps = 20'000;
  const int64_t tasks = 4 * cpu::num_threads();
  std::vector<float> results(tasks);
  const double seconds = best_seconds(all, [&] {
    cpu::parallel_for(tasks, 1, [&](int64_t task, int64_t) {
      Floats chains[kChains];
      for (int i = 0; i < kChains; ++i) chains[i] = Floats{} + static_cast<float>(task + i);
      const Floats factor = Floats{} + 0.999f;
      for (int step = 0; step < kSteps; ++step) {
        for (auto& chain : chains) chain = chain * factor + factor;
      }
      Floats total = {};
      for (const auto& chain : chains) total += chain;
      results[task] = total[0];
    });
  });
  return 2.0 * kChains * 16 * kSteps * static_cast<double>(tasks) / seconds / 1e9;
}

// ---- Products ----

struct Case {
  int64_t out_features;
  int64_t in_features;
  int bits;  // 0: bfloat16
};

double bytes_of(const Case& shape) {
  const double elements = static_cast<double>(shape.out_features * shape.in_features);
  return shape.bits == 0 ? elements * 2 : elements * shape.bits / 8 + elements / 32 * 4;
}

// Strips with groups of 32 and float16 scales, or dense; enough copies of the weight that none
// stays in a cache near the core.
class Product {
 public:
  Product(const Case& shape, int64_t num_tokens)
      : shape_(shape),
        num_tokens_(num_tokens),
        copies_(std::max<int64_t>(1, static_cast<int64_t>(weight_bytes / bytes_of(shape)))),
        words_(copies_ * words_of_copy(), 0x3c013c02u),
        x_(num_tokens * shape.in_features, 0x3f80),
        y_(num_tokens * shape.out_features) {
    int64_t most = 0;
    for (int64_t copy = 0; copy < copies_; ++copy)
      most = std::max(most, product(copy).workspace_floats());
    workspace_.resize(most);
  }

  double seconds(bool all_threads) {
    int64_t copy = 0;
    return best_seconds(all_threads, [&] { product(copy++ % copies_).run(workspace_.data()); });
  }

 private:
  int64_t words_of_copy() const { return static_cast<int64_t>(bytes_of(shape_)) / 4; }

  cpu::Matmul product(int64_t copy) {
    cpu::WeightRows weight{.out_features = shape_.out_features,
                           .in_features = shape_.in_features,
                           .elements = words_.data() + copy * words_of_copy(),
                           .stride = shape_.in_features,
                           .type = cpu::ElementType::kBfloat16};
    if (shape_.bits != 0) {
      weight.type = cpu::ElementType::kFloat16;
      weight.bits = shape_.bits;
      weight.group_size = 32;
      weight.in_strips = true;
    }
    return cpu::Matmul(weight,
                       {.elements = x_.data(),
                        .type = cpu::ElementType::kBfloat16,
                        .num_tokens = num_tokens_,
                        .stride = shape_.in_features},
                       {.elements = y_.data(),
                        .type = cpu::ElementType::kBfloat16,
                        .bias = nullptr,
                        .bias_type = cpu::ElementType::kFloat32});
  }

  Case shape_;
  int64_t num_tokens_;
  int64_t copies_;
  std::vector<uint32_t> words_;
  std::vector<uint16_t> x_;  // bfloat16
  std::vector<uint16_t> y_;  // bfloat16
  std::vector<float> workspace_;
};

void report(const Case& shape, int64_t num_tokens, bool all, double bandwidth, double peak) {
  const double seconds = Product(shape, num_tokens).seconds(all);
  const double gigabytes = bytes_of(shape) / seconds / 1e9;
  const double gigaflops =
      2.0 * static_cast<double>(num_tokens * shape.out_features * shape.in_features) / seconds /
      1e9;
  std::printf(
      "%6ld x %4ld  %8s  M=%-4ld %d thr  %9.1f us  %6.1f GB/s (%3.0f%%)  %7.1f GFLOP/s (%3.0f%%)\n",
      shape.out_features, shape.in_features,
      shape.bits == 0 ? "bf16" : (std::to_string(shape.bits) + " bits").c_str(), num_tokens,
      all ? cpu::num_threads() : 1, seconds * 1e6, gigabytes, 100 * gigabytes / bandwidth,
      gigaflops, 100 * gigaflops / peak);
  std::fflush(stdout);
}

int run(int argc, char** argv) {
  if (argc > 1) seconds_a_case = std::atof(argv[1]);
  if (argc > 3) weight_bytes = 1e6 * std::atof(argv[3]);
  for (cpu::Isa isa : cpu::supported_isas())
    if (argc > 2 && std::strcmp(argv[2], cpu::name_of(isa)) == 0) cpu::set_isa(isa);
  const std::vector<Case> cases = {{576, 576, 4},   {960, 576, 4},  {3072, 576, 4}, {576, 1536, 4},
                                   {49152, 576, 8}, {3072, 576, 0}, {576, 1536, 0}, {3072, 576, 6}};
  std::printf("%s\n", cpu::name_of(cpu::current_isa()));
  for (bool all : {false, true}) {
    if (all && cpu::num_threads() == 1) continue;
    const double bandwidth = read_bandwidth(all), peak = fma_peak(all);
    std::printf("%d threads: reads %.1f GB/s, multiply-adds %.0f GFLOP/s\n",
                all ? cpu::num_threads() : 1, bandwidth, peak);
    for (int64_t num_tokens : {1, 8, 16, 32, 64, 128, 512})
      for (const Case& shape : cases) report(shape, num_tokens, all, bandwidth, peak);
  }
  return 0;
}

}  // namespace
}  // namespace vllm_metal

int main(int argc, char** argv) { return vllm_metal::run(argc, argv); }
