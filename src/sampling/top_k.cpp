// SPDX-License-Identifier: Apache-2.0
#include "sampling/top_k.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace vllm_metal {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

bool any_above(std::span<const float> values, float threshold) {
  int count = 0;
  for (float value : values) count += value > threshold;
  return count > 0;
}

// Hands each value above a threshold to `take`, which returns the threshold from then on. The
// threshold of the k largest rises fast, so that most blocks hold nothing above it.
template <typename Take>
void for_each_above(std::span<const float> values, const Take& take) {
  constexpr size_t kBlockSize = 128;
  float threshold = kLowest;
  for (size_t begin = 0; begin < values.size(); begin += kBlockSize) {
    const auto block = values.subspan(begin, std::min(kBlockSize, values.size() - begin));
    if (!any_above(block, threshold)) continue;
    for (size_t i = 0; i < block.size(); ++i) {
      if (block[i] > threshold) threshold = take(block[i], begin + i, threshold);
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
  for_each_above(values, [&](float value, size_t, float threshold) {
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
  for_each_above(values, [&](float value, size_t index, float threshold) {
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
