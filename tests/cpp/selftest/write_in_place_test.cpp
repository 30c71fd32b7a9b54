// SPDX-License-Identifier: Apache-2.0
// The self-test's look at writes into the KV cache passes here, and finds writes that copy it or go
// to the wrong row.
#include "selftest/write_in_place.h"

#include <gtest/gtest.h>

#include "kernels/kv_write.h"
#include "selftest/cache_inputs.h"

namespace vllm_metal::selftest {
namespace {

constexpr uint64_t kMaxBytes = uint64_t{16} << 20;

std::vector<Result> results_of(const PoolScope& scope) {
  std::vector<Result> results;
  for (const Check& check : write_in_place_checks(scope))
    if (check.name.starts_with("cpu/")) results.push_back(run_check(check));
  return results;
}

TEST(WriteInPlace, TakesNoMemory) {
  const auto results = results_of({.max_bytes = kMaxBytes});
  ASSERT_EQ(results.size(), 3u);  // 1, 4 and 16 MiB
  for (const Result& result : results) {
    EXPECT_EQ(result.outcome, Outcome::kPassed) << *result.worst_error << " bytes";
    EXPECT_GT(*result.worst_error, 0);  // its own token and result
  }
}

TEST(WriteInPlace, AWriteThatCopiesIsFound) {
  const auto results = results_of({.max_bytes = kMaxBytes, .write = kv_write_fallback});
  ASSERT_EQ(results.size(), 3u);
  for (size_t i = 0; i < results.size(); ++i) {
    EXPECT_EQ(results[i].outcome, Outcome::kFailed);
    // The keys at least, which a step under way holds.
    EXPECT_GE(*results[i].worst_error, static_cast<double>((512 << 10) << 2 * i));
  }
}

// A row further on, or back at the end.
void write_elsewhere(KVView& view, const mx::array& keys, const mx::array& values) {
  const int32_t slot = view.layout.slot_mapping[0];
  const int32_t other = slot + 1 < view.keys.shape(0) ? slot + 1 : slot - 1;
  const BatchLayout layout({0, 1}, {1}, {other}, {0}, 0);
  KVView elsewhere{view.keys, view.values, layout};
  kv_write(elsewhere, keys, values);
}

TEST(WriteInPlace, AWriteToAnotherRowIsFound) {
  for (const Result& result : results_of({.max_bytes = kMaxBytes, .write = write_elsewhere}))
    EXPECT_EQ(result.outcome, Outcome::kFailed);
}

}  // namespace
}  // namespace vllm_metal::selftest
