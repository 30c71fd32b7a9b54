// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/huge_pages.h"
#include "kernels/cpu/parallel_for.h"

namespace vllm_metal {

constexpr int64_t kReadBytes = int64_t{512} << 20;

// kReadBytes of zeros in memory like that of weights and of the paged cache.
inline mx::array memory_to_read() {
  mx::array memory = uninitialized_in_huge_pages(
      {static_cast<mx::ShapeElem>(kReadBytes / sizeof(float))}, mx::float32);
  std::fill_n(memory.data<float>(), memory.size(), 0.0f);
  return memory;
}

// Has all threads of the kernels read kReadBytes together.
inline void read_memory() {
  typedef float Floats __attribute__((vector_size(64)));
  static const mx::array array = memory_to_read();
  const float* memory = array.data<float>();
  constexpr int64_t kChunk = 1 << 18;
  const int64_t chunks = static_cast<int64_t>(array.size()) / kChunk;
  std::vector<float> sums(chunks);
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
}

}  // namespace vllm_metal
