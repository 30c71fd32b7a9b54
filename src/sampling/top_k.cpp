// SPDX-License-Identifier: Apache-2.0
#include "sampling/top_k.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "sampling/row_passes.h"

namespace vllm_metal {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// A value that at least k of `values` are above, or -inf. The k-th largest of the maxima of parts
// is at most the k-th largest of all, and close to it unless k is close to the number of parts.
float threshold_below_kth(std::span<const float> values, size_t k) {
  if (k > kNumStrides * 7 / 8) return kLowest;
  auto maxima = max_of_strides(values);
  const auto kth = maxima.begin() + static_cast<std::ptrdiff_t>(k - 1);
  std::nth_element(maxima.begin(), kth, maxima.end(), std::greater<>());
  return std::nextafter(*kth, kLowest);
}

// Hands each value above a threshold, at first one below the k largest, to `take`, which returns
// the threshold from then on. Most blocks hold nothing above it.
template <typename Take>
void for_each_above(std::span<const float> values, size_t k, const Take& take) {
  float threshold = threshold_below_kth(values, k);
  size_t begin = 0;
  while ((begin = next_block_above(values, begin, threshold)) < values.size()) {
    const size_t end = std::min(begin + kRowBlock, values.size());
    for (; begin < end; ++begin) {
      if (values[begin] > threshold) threshold = take(values[begin], begin, threshold);
    }
  }
}

// Drops all but the k first in the order `before`.
template <typename T, typename Before>
void cut_to_first(std::vector<T>& values, size_t k, const Before& before) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(k - 1),
                   values.end(), before);
  values.resize(k);
}

bool ranks_before(const RankedValue& a, const RankedValue& b) {
  return a.value != b.value ? a.value > b.value : a.index < b.index;
}

// What is collected is cut back to the k largest whenever there is twice as much, and some more so
// that a small k does not mean many cuts.
size_t room_for(size_t k) { return 2 * k + 64; }

// Fills the rest of `indexes` with those of values of -inf, which no threshold is below.
void append_lowest(std::span<const float> values, std::span<int32_t> indexes) {
  for (size_t i = 0, count = 0; count < indexes.size(); ++i)
    if (values[i] == kLowest) indexes[count++] = static_cast<int32_t>(i);
}

}  // namespace

float kth_largest(std::span<const float> values, int k, std::vector<float>& scratch) {
  const size_t wanted = static_cast<size_t>(k);
  scratch.clear();
  for_each_above(values, wanted, [&](float value, size_t, float threshold) {
    scratch.push_back(value);
    if (scratch.size() < room_for(wanted)) return threshold;
    cut_to_first(scratch, wanted, std::greater<>());
    return scratch.back();
  });
  if (scratch.size() < wanted) return kLowest;
  cut_to_first(scratch, wanted, std::greater<>());
  return scratch.back();
}

void find_largest(std::span<const float> values, std::span<int32_t> indexes,
                  std::vector<RankedValue>& scratch) {
  const size_t wanted = indexes.size();
  if (wanted == 0) return;
  scratch.clear();
  for_each_above(values, wanted, [&](float value, size_t index, float threshold) {
    scratch.push_back({value, static_cast<int32_t>(index)});
    if (scratch.size() < room_for(wanted)) return threshold;
    cut_to_first(scratch, wanted, ranks_before);
    return scratch.back().value;
  });
  if (scratch.size() > wanted) cut_to_first(scratch, wanted, ranks_before);
  std::sort(scratch.begin(), scratch.end(), ranks_before);
  for (size_t i = 0; i < scratch.size(); ++i) indexes[i] = scratch[i].index;
  append_lowest(values, indexes.subspan(scratch.size()));
}

}  // namespace vllm_metal
