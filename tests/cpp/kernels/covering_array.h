// SPDX-License-Identifier: Apache-2.0
// Which combinations of choices a table of cases is made of.
#pragma once

#include <cstddef>
#include <random>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

namespace vllm_metal::testing_support {

// One case: for each factor, which of its choices.
using Levels = std::vector<int>;

// Every combination of factors with so many choices each.
inline std::vector<Levels> product_of(const std::vector<int>& counts) {
  std::vector<Levels> cases{Levels{}};
  for (int count : counts) {
    std::vector<Levels> longer;
    for (const Levels& levels : cases) {
      for (int level = 0; level < count; ++level) {
        longer.push_back(levels);
        longer.back().push_back(level);
      }
    }
    cases = std::move(longer);
  }
  return cases;
}

// A covering array: few cases in which each choice of a factor meets each choice of every other.
// Built greedily, a case a time, from the first pair that is missing. Other seeds give other cases.
class AllPairs {
 public:
  AllPairs(std::vector<int> counts, unsigned seed) : counts_(std::move(counts)), random_(seed) {}

  std::vector<Levels> cases() {
    std::vector<Levels> result;
    for (const auto& [i, a, j, b] : pairs()) {
      if (met_.contains({i, a, j, b})) continue;
      Levels levels(counts_.size(), -1);
      levels[i] = a;
      levels[j] = b;
      complete(levels);
      for (size_t k = 0; k < levels.size(); ++k) meet(levels, k, true);
      result.push_back(std::move(levels));
    }
    return result;
  }

 private:
  using Pair =
      std::tuple<size_t, int, size_t, int>;  // two factors, the first one first, and levels

  std::vector<Pair> pairs() const {
    std::vector<Pair> result;
    for (size_t j = 1; j < counts_.size(); ++j)
      for (size_t i = 0; i < j; ++i)
        for (int a = 0; a < counts_[i]; ++a)
          for (int b = 0; b < counts_[j]; ++b) result.push_back({i, a, j, b});
    return result;
  }

  // Gives each factor without a level one of those that meet most others for the first time.
  void complete(Levels& levels) {
    for (size_t i = 0; i < levels.size(); ++i) {
      if (levels[i] >= 0) continue;
      int best = -1, most = -1;
      for (int step = 0, start = static_cast<int>(random_() % counts_[i]); step < counts_[i];
           ++step) {
        levels[i] = (start + step) % counts_[i];
        const int count = meet(levels, i, false);
        if (count > most) std::tie(best, most) = std::pair{levels[i], count};
      }
      levels[i] = best;
    }
  }

  // How many pairs with factor `i` are new; notes them if `keep`.
  int meet(const Levels& levels, size_t i, bool keep) {
    int count = 0;
    for (size_t j = 0; j < levels.size(); ++j) {
      if (j == i || levels[j] < 0) continue;
      const Pair pair = i < j ? Pair{i, levels[i], j, levels[j]} : Pair{j, levels[j], i, levels[i]};
      if (met_.contains(pair)) continue;
      ++count;
      if (keep) met_.insert(pair);
    }
    return count;
  }

  std::vector<int> counts_;
  std::mt19937 random_;
  std::set<Pair> met_;
};

}  // namespace vllm_metal::testing_support
