// SPDX-License-Identifier: Apache-2.0
#include "cache/block_ledger.h"

#include <gmock/gmock.h>

#include <stdexcept>

#include "support/error_of.h"

namespace vllm_metal {
namespace {

using test::error_of;
using testing::HasSubstr;

constexpr int kBlockSize = 4;

// A request's part of a step: its tokens [begin, end).
struct Part {
  RequestKey key;
  int32_t begin;
  int32_t end;
  std::vector<int32_t> table;
};

CacheStep step_of(const std::vector<Part>& parts) {
  CacheStep step;
  step.query_starts = {0};
  for (const Part& part : parts) {
    step.keys.push_back(part.key);
    step.query_starts.push_back(step.query_starts.back() + part.end - part.begin);
    step.context_lens.push_back(part.end);
    step.block_tables.push_back(part.table);
  }
  return step;
}

class BlockLedgerTest : public testing::Test {
 protected:
  void add(const std::vector<Part>& parts) { ledger_.add(step_of(parts)); }
  std::string complaint(const std::vector<Part>& parts) {
    return error_of([&] {
      try {
        add(parts);
      } catch (const std::logic_error&) {
        throw;
      } catch (...) {
        FAIL() << "not a std::logic_error";
      }
    });
  }

  BlockLedger ledger_{kBlockSize};
};

TEST_F(BlockLedgerTest, RequestsWithBlocksOfTheirOwnPass) {
  add({{1, 0, 6, {5, 3}}, {2, 0, 3, {4}}});
  add({{1, 6, 7, {5, 3}}, {2, 3, 5, {4, 7}}, {3, 0, 9, {1, 2, 6}}});
  add({{1, 7, 9, {5, 3, 8}}});
}

TEST_F(BlockLedgerTest, TokensMayBeComputedAgainByTheirRequest) {
  add({{1, 0, 6, {5, 3}}});
  add({{1, 0, 6, {5, 3}}});
  add({{1, 4, 7, {5, 3}}});  // drafts that were rejected, say
}

TEST_F(BlockLedgerTest, APrefixMayBeSharedInTheStepThatComputesItAndLater) {
  add({{1, 0, 9, {5, 3, 2}}, {2, 8, 10, {5, 3, 6}}, {3, 4, 5, {5, 7}}});
  add({{1, 9, 10, {5, 3, 2}}, {4, 8, 12, {5, 3, 8}}, {2, 10, 11, {5, 3, 6}}});
}

TEST_F(BlockLedgerTest, BlocksOfRequestsThatEndedMayBeHandedOutAgain) {
  add({{1, 0, 8, {5, 3}}});
  ledger_.release(1);
  add({{2, 0, 8, {3, 5}}});
  ledger_.clear();
  add({{3, 0, 8, {5, 3}}});
}

TEST_F(BlockLedgerTest, TwoTokensOfAStepInOnePlace) {
  EXPECT_EQ(complaint({{1, 0, 6, {5, 3}}, {2, 0, 2, {5}}}),
            "[paged_kv_cache] token 0 of request 2 goes to block 5, to the place of another token "
            "of this step.");
  ledger_.clear();
  EXPECT_THAT(complaint({{1, 0, 8, {5, 5}}}), HasSubstr("token 0 of request 1 goes to block 5"));
}

TEST_F(BlockLedgerTest, ASharedBlockRewrittenLater) {
  add({{1, 0, 6, {5, 3}}});
  EXPECT_EQ(complaint({{2, 0, 4, {5}}}),
            "[paged_kv_cache] token 0 of request 2 goes to block 5, where another request's token "
            "lies.");
  ledger_.release(2);
  // Only the tokens that lie there count: block 3 has room for two more of either.
  EXPECT_THAT(complaint({{3, 5, 6, {5, 3}}}), HasSubstr("token 5 of request 3 goes to block 3"));
  ledger_.release(3);
  add({{4, 6, 7, {5, 3}}});
  EXPECT_THAT(complaint({{1, 6, 7, {5, 3}}}), HasSubstr("token 6 of request 1 goes to block 3"));
}

TEST_F(BlockLedgerTest, ABlockThatIsAnotherPartOfAnotherRequest) {
  add({{1, 0, 6, {5, 3}}});
  EXPECT_EQ(complaint({{2, 0, 4, {3}}}),
            "[paged_kv_cache] token 0 of request 2 goes to block 3, which is another part of "
            "another request.");
  ledger_.release(2);
  EXPECT_THAT(complaint({{3, 0, 6, {7, 5}}}), HasSubstr("token 4 of request 3 goes to block 5"));
  ledger_.release(3);
  // Blocks that are given for tokens to come are owned, too.
  add({{1, 6, 7, {5, 3, 8}}});
  EXPECT_THAT(complaint({{4, 0, 1, {8}}}), HasSubstr("another part of another request"));
}

}  // namespace
}  // namespace vllm_metal
