// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace vllm_metal {

// Which blocks of tokens a prefix cache holds, and in which of its places. A block is known by a
// hash of its tokens and of all before them, so that the hashes of a prompt are a chain: a block is
// never held without those before it. What else keys and values depend on (an adapter, a salt) has
// to be in the hashes; model and dtype need not be, since an index lives and dies with the storage
// of one loaded model.
//
// The least recently used block goes first, the end of a chain before its beginning. All calls take
// the time of the chain they are given, however much is held.
class PrefixIndex {
 public:
  using Hashes = std::span<const std::string_view>;

  struct Saved {
    int32_t first_block = 0;      // of the chain: those before were held already
    std::vector<int32_t> blocks;  // places for the blocks from there on, as far as there are any
  };

  // Throws std::invalid_argument unless num_blocks is positive.
  explicit PrefixIndex(int32_t num_blocks);

  // Places of the longest beginning of the chain that is held.
  std::vector<int32_t> match(Hashes hashes);
  // Takes the chain in, as far as there is room.
  Saved save(Hashes hashes);
  // What is matched or saved between two calls keeps its place until the second: a step is told to
  // copy it only then.
  void begin_step() { ++step_; }
  void clear();

  int32_t num_blocks() const { return num_blocks_; }
  size_t size() const { return places_.size(); }

 private:
  struct Hash {
    using is_transparent = void;  // NOLINT(readability-identifier-naming): the standard's
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  // Blocks are a list from the least to the most recently used.
  struct Block {
    const std::string* hash = nullptr;  // the key in places_
    int32_t older = kNone;
    int32_t newer = kNone;
    uint64_t used_in = 0;  // step
  };
  static constexpr int32_t kNone = -1;

  std::vector<int32_t> held(Hashes hashes) const;
  void use(const std::vector<int32_t>& chain);
  // A place for a new block; kNone when all were used in this step.
  int32_t make_place();
  void unlink(int32_t block);
  void link_newest(int32_t block);

  int32_t num_blocks_;
  uint64_t step_ = 1;
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> places_;
  std::vector<Block> blocks_;  // as many as were ever in use
  int32_t oldest_ = kNone;
  int32_t newest_ = kNone;
};

}  // namespace vllm_metal
