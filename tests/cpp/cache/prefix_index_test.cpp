// SPDX-License-Identifier: Apache-2.0
#include "cache/prefix_index.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <stdexcept>
#include <string>

namespace vllm_metal {
namespace {

using Chain = std::vector<std::string>;
using testing::ElementsAre;
using testing::IsEmpty;

std::vector<std::string_view> views(const Chain& chain) { return {chain.begin(), chain.end()}; }

// "ab" -> {"a", "ab"}: the hash of a block depends on all before it.
Chain chain_of(const std::string& blocks) {
  Chain chain;
  for (size_t i = 1; i <= blocks.size(); ++i) chain.push_back(blocks.substr(0, i));
  return chain;
}

class PrefixIndexTest : public testing::Test {
 protected:
  std::vector<int32_t> match(const std::string& blocks) {
    return index_.match(views(chain_of(blocks)));
  }
  PrefixIndex::Saved save(const std::string& blocks) {
    return index_.save(views(chain_of(blocks)));
  }

  PrefixIndex index_{4};
};

TEST_F(PrefixIndexTest, FindsTheLongestBeginning) {
  EXPECT_THAT(match("ab"), IsEmpty());
  EXPECT_THAT(save("abc").blocks, ElementsAre(0, 1, 2));
  EXPECT_THAT(match("abc"), ElementsAre(0, 1, 2));
  EXPECT_THAT(match("abx"), ElementsAre(0, 1));
  EXPECT_THAT(match("abcd"), ElementsAre(0, 1, 2));
  EXPECT_THAT(match("b"), IsEmpty());
  EXPECT_THAT(match(""), IsEmpty());
  EXPECT_EQ(index_.size(), 3u);
}

TEST_F(PrefixIndexTest, SavesWhatIsMissing) {
  save("ab");
  const auto saved = save("abc");
  EXPECT_EQ(saved.first_block, 2);
  EXPECT_THAT(saved.blocks, ElementsAre(2));
  EXPECT_EQ(save("abc").first_block, 3);
  EXPECT_THAT(save("abc").blocks, IsEmpty());
}

TEST_F(PrefixIndexTest, EvictsTheLeastRecentlyUsedEndsFirst) {
  save("ab");
  index_.begin_step();
  save("xy");
  index_.begin_step();
  EXPECT_THAT(match("a"), ElementsAre(0));  // of "ab", the end is older than "xy" now
  index_.begin_step();
  EXPECT_THAT(save("p").blocks, ElementsAre(1));
  EXPECT_THAT(match("ab"), ElementsAre(0));
  EXPECT_THAT(save("pq").blocks, ElementsAre(3));  // the end of "xy"
  EXPECT_THAT(match("xy"), ElementsAre(2));
}

TEST_F(PrefixIndexTest, WhatAStepUsesStays) {
  save("ab");
  index_.begin_step();
  match("ab");
  EXPECT_THAT(save("xyz").blocks, ElementsAre(2, 3));
  EXPECT_THAT(save("p").blocks, IsEmpty());
  index_.begin_step();
  EXPECT_THAT(save("p").blocks, ElementsAre(1));
}

TEST_F(PrefixIndexTest, AChainLongerThanTheCacheIsHeldInPart) {
  EXPECT_THAT(save("abcdef").blocks, ElementsAre(0, 1, 2, 3));
  index_.begin_step();
  EXPECT_EQ(save("abcdef").first_block, 4);
  EXPECT_THAT(save("abcdef").blocks, IsEmpty());
}

TEST_F(PrefixIndexTest, ForgetsAll) {
  save("abcd");
  index_.clear();
  EXPECT_EQ(index_.size(), 0u);
  EXPECT_THAT(match("abcd"), IsEmpty());
  EXPECT_THAT(save("xy").blocks, ElementsAre(0, 1));
}

TEST_F(PrefixIndexTest, RefusesToHoldNothing) {
  EXPECT_THROW(PrefixIndex(0), std::invalid_argument);
}

// The same in the most obvious way: a time of use for each block, and a search for the oldest.
class Model {
 public:
  explicit Model(size_t num_blocks) : num_blocks_(num_blocks) {}

  size_t match(const Chain& chain) {
    size_t length = 0;
    while (length < chain.size() && used_.contains(chain[length])) ++length;
    use(chain, length);
    return length;
  }

  size_t save(const Chain& chain) {
    size_t length = match(chain);
    for (; length < chain.size(); ++length) {
      if (used_.size() == num_blocks_ && !evict()) break;
      used_[chain[length]] = {++time_, step_};
    }
    use(chain, length);
    return length;
  }

  void begin_step() { ++step_; }
  std::set<std::string> held() const {
    std::set<std::string> keys;
    for (const auto& entry : used_) keys.insert(entry.first);
    return keys;
  }

 private:
  struct Use {
    int time;
    int step;
  };

  void use(const Chain& chain, size_t length) {
    for (size_t i = length; i-- > 0;) used_[chain[i]] = {++time_, step_};
  }

  bool evict() {
    const auto oldest = std::min_element(
        used_.begin(), used_.end(),
        [](const auto& a, const auto& b) { return a.second.time < b.second.time; });
    if (oldest->second.step == step_) return false;
    used_.erase(oldest);
    return true;
  }

  size_t num_blocks_;
  int time_ = 0;
  int step_ = 0;
  std::map<std::string, Use> used_;
};

TEST(PrefixIndex, RandomChainsAgainstAModel) {
  for (const int num_blocks : {1, 2, 7, 40}) {
    PrefixIndex index(num_blocks);
    Model model(static_cast<size_t>(num_blocks));
    std::map<int32_t, std::string> places;  // what was last saved where
    std::mt19937 random(static_cast<unsigned>(num_blocks));
    for (int call = 0; call < 4000; ++call) {
      std::string blocks(random() % 12, 'a');
      for (char& block : blocks) block = static_cast<char>('a' + random() % 2);
      const Chain chain = chain_of(blocks);
      if (random() % 3 == 0) {
        index.begin_step();
        model.begin_step();
      }
      if (random() % 2 == 0) {
        const auto found = index.match(views(chain));
        ASSERT_EQ(found.size(), model.match(chain));
        for (size_t i = 0; i < found.size(); ++i) ASSERT_EQ(places[found[i]], chain[i]);
      } else {
        const auto saved = index.save(views(chain));
        ASSERT_EQ(saved.first_block + saved.blocks.size(), model.save(chain));
        for (size_t i = 0; i < saved.blocks.size(); ++i) {
          ASSERT_LT(saved.blocks[i], num_blocks);
          places[saved.blocks[i]] = chain[static_cast<size_t>(saved.first_block) + i];
        }
      }
      const auto held = model.held();
      ASSERT_EQ(index.size(), held.size());
      for (const std::string& hash : held)  // nothing without what comes before it
        ASSERT_TRUE(hash.size() == 1 || held.contains(hash.substr(0, hash.size() - 1)));
    }
  }
}

}  // namespace
}  // namespace vllm_metal
