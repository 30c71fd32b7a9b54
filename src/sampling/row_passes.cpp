// SPDX-License-Identifier: Apache-2.0
#include "sampling/row_passes.h"

#include <algorithm>
#include <array>
#include <limits>

// x86-64 at its oldest has vectors of four floats: functions so marked are compiled for newer ones
// as well, and the loader picks. Elsewhere the baseline is what there is; so it is with the thread
// sanitizer, which is not ready when the loader asks.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute) && \
    !defined(__SANITIZE_THREAD__)
#if __has_attribute(target_clones)
#define VLLM_METAL_VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef VLLM_METAL_VECTOR_CLONES
#define VLLM_METAL_VECTOR_CLONES
#endif

namespace vllm_metal {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// Floating-point sums and maxima run in lanes: compilers may not reorder them on their own.
constexpr size_t kLanes = kNumStrides;  // more than compilers unroll, which would hide the loop

constexpr size_t kWordSize = 32;

constexpr std::array<uint32_t, kWordSize> make_bits() {
  std::array<uint32_t, kWordSize> bits{};
  for (size_t i = 0; i < kWordSize; ++i) bits[i] = uint32_t{1} << i;
  return bits;
}

// A table instead of shifts: not every vector unit shifts lanes by different counts.
constexpr std::array<uint32_t, kWordSize> kBits = make_bits();

}  // namespace

VLLM_METAL_VECTOR_CLONES
float max_logit(std::span<const float> logits) {
  std::array<float, kLanes> lanes;
  lanes.fill(kMasked);
  std::array<int, kLanes> num_nan{};
  const size_t num_whole = logits.size() - logits.size() % kLanes;
  const float* values = logits.data();
  for (size_t i = 0; i < num_whole; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float logit = values[i + lane];
      lanes[lane] = logit > lanes[lane] ? logit : lanes[lane];
      num_nan[lane] += logit != logit;
    }
  }
  for (size_t i = num_whole; i < logits.size(); ++i) {
    lanes[0] = std::max(lanes[0], values[i]);
    num_nan[0] += values[i] != values[i];
  }
  int any_nan = 0;
  for (int count : num_nan) any_nan += count;
  float max = lanes[0];
  for (float lane : lanes) max = std::max(max, lane);
  return any_nan > 0 ? std::numeric_limits<float>::quiet_NaN() : max;
}

VLLM_METAL_VECTOR_CLONES
std::array<float, kNumStrides> max_of_strides(std::span<const float> logits) {
  std::array<float, kLanes> lanes;
  lanes.fill(kMasked);
  const size_t num_whole = logits.size() - logits.size() % kLanes;
  const float* values = logits.data();
  for (size_t i = 0; i < num_whole; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float logit = values[i + lane];
      lanes[lane] = logit > lanes[lane] ? logit : lanes[lane];
    }
  }
  for (size_t i = num_whole; i < logits.size(); ++i)
    lanes[i - num_whole] = std::max(lanes[i - num_whole], values[i]);
  return lanes;
}

MaxLogit locate_max_logit(std::span<const float> logits) {
  constexpr size_t kPart = 16 * kRowBlock;  // reducing the lanes costs little by then
  MaxLogit max{kMasked, 0};
  for (size_t begin = 0; begin < logits.size(); begin += kPart) {
    const float value = max_logit(logits.subspan(begin, std::min(kPart, logits.size() - begin)));
    if (value > max.value || value != value) max = {value, begin};
    if (value != value) break;
  }
  return max;
}

VLLM_METAL_VECTOR_CLONES
int32_t find_logit(std::span<const float> logits, float logit) {
  // Counting is vectorised where a search is not.
  const float* values = logits.data();
  size_t begin = 0;
  for (; begin + kRowBlock < logits.size(); begin += kRowBlock) {
    int count = 0;
    for (size_t i = 0; i < kRowBlock; ++i) count += values[begin + i] == logit;
    if (count > 0) break;
  }
  while (values[begin] != logit) ++begin;
  return static_cast<int32_t>(begin);
}

VLLM_METAL_VECTOR_CLONES
int32_t count_at_least(std::span<const float> logits, float threshold) {
  int32_t count = 0;
  for (float logit : logits) count += logit >= threshold;
  return count;
}

VLLM_METAL_VECTOR_CLONES
size_t next_block_above(std::span<const float> logits, size_t begin, float threshold) {
  const float* values = logits.data();
  for (; begin + kRowBlock <= logits.size(); begin += kRowBlock) {
    int count = 0;
    for (size_t i = 0; i < kRowBlock; ++i) count += values[begin + i] > threshold;
    if (count > 0) return begin;
  }
  for (size_t i = begin; i < logits.size(); ++i)
    if (values[i] > threshold) return begin;
  return logits.size();
}

VLLM_METAL_VECTOR_CLONES
size_t next_block_at_least(std::span<const float> logits, size_t begin, float threshold) {
  const float* values = logits.data();
  for (; begin + kRowBlock <= logits.size(); begin += kRowBlock) {
    int count = 0;
    for (size_t i = 0; i < kRowBlock; ++i) count += values[begin + i] >= threshold;
    if (count > 0) return begin;
  }
  for (size_t i = begin; i < logits.size(); ++i)
    if (values[i] >= threshold) return begin;
  return logits.size();
}

VLLM_METAL_VECTOR_CLONES
void compute_weights(std::span<const float> logits, float max, float temperature, float* weights) {
  const float* values = logits.data();
  const size_t size = logits.size();
  for (size_t i = 0; i < size; ++i)
    weights[i] = exp_of_nonpositive(softmax_exponent(values[i], max, temperature));
}

VLLM_METAL_VECTOR_CLONES
void sum_weights(std::span<const float> logits, float max, float temperature,
                 std::span<double> block_sums) {
  for (size_t block = 0; block < block_sums.size(); ++block) {
    const size_t begin = block * kRowBlock;
    const size_t size = std::min(kRowBlock, logits.size() - begin);
    const float* values = logits.data() + begin;
    std::array<float, kRowBlock> weights{};
    for (size_t i = 0; i < size; ++i)
      weights[i] = exp_of_nonpositive(softmax_exponent(values[i], max, temperature));
    // At most four of up to 1 a lane: the rounding of float32 is far below that of the weights.
    std::array<float, kLanes> lanes{};
    for (size_t i = 0; i < kRowBlock; i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += weights[i + lane];
    }
    double sum = 0;
    for (float lane : lanes) sum += lane;
    block_sums[block] = sum;
  }
}

VLLM_METAL_VECTOR_CLONES
void copy_masked(std::span<const float> logits, const int32_t* bitmask, std::span<float> copy) {
  constexpr auto kMaskedBits = std::bit_cast<uint32_t>(kMasked);
  const size_t num_whole = logits.size() / kWordSize;
  for (size_t word = 0; word < num_whole; ++word) {
    const float* from = logits.data() + word * kWordSize;
    float* to = copy.data() + word * kWordSize;
    const auto allowed = static_cast<uint32_t>(bitmask[word]);
    if (allowed == 0) {  // most of the vocabulary under most grammars
      for (size_t i = 0; i < kWordSize; ++i) to[i] = kMasked;
      continue;
    }
    for (size_t i = 0; i < kWordSize; ++i) {
      const uint32_t drop = (allowed & kBits[i]) == 0 ? UINT32_MAX : 0;
      const auto bits = std::bit_cast<uint32_t>(from[i]);
      to[i] = std::bit_cast<float>((bits & ~drop) | (kMaskedBits & drop));
    }
  }
  for (size_t i = num_whole * kWordSize; i < logits.size(); ++i) {
    const bool is_allowed = (static_cast<uint32_t>(bitmask[num_whole]) & kBits[i % kWordSize]) != 0;
    copy[i] = is_allowed ? logits[i] : kMasked;
  }
}

VLLM_METAL_VECTOR_CLONES
void scale_kept(std::span<const float> logits, float border, int32_t last_id, float temperature,
                std::span<float> scaled) {
  const float* values = logits.data();
  float* results = scaled.data();
  const auto size = static_cast<int32_t>(logits.size());
  for (int32_t id = 0; id < size; ++id) {
    const bool is_kept = (values[id] > border) | ((values[id] == border) & (id <= last_id));
    const float quotient = values[id] / temperature;
    results[id] = is_kept ? quotient : kMasked;
  }
}

}  // namespace vllm_metal
