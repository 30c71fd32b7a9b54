// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/cpu/parallel_for.h"

namespace vllm_metal {

// GB/s at which all threads of the kernels read 512 MB together, measured once.
inline double memory_read_gb_per_second() {
  typedef float Floats __attribute__((vector_size(64)));
  static const std::vector<float> memory(128 << 20, 1.0f);
  constexpr int64_t kChunk = 1 << 18;
  const int64_t chunks = static_cast<int64_t>(memory.size()) / kChunk;
  std::vector<float> sums(chunks);
  const auto start = std::chrono::steady_clock::now();
  cpu::parallel_for(chunks, 1, [&](int64_t chunk, int64_t) {
    Floats totals[4] = {};
    for (int64_t i = 0; i < kChunk; i += 64) {
      for (int j = 0; j < 4; ++j) {
        Floats values;
        std::memcpy(&values, &memory[chunk * kChunk + i + j * 16], sizeof(values));
        totals[j] += values;
      }
    }
    sums[chunk] = (totals[0] + totals[1] + totals[2] + totals[3])[0];
  });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return static_cast<double>(memory.size()) * sizeof(float) / seconds.count() / 1e9;
}

}  // namespace vllm_metal
