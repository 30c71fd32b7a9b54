// SPDX-License-Identifier: Apache-2.0

// kCopyWordsPerGroup words of one pair a group.
template <typename Word>
KERNEL(kCopyThreads)
copy_blocks(DEVICE_BUFFER(Word, key_cache, 0), DEVICE_BUFFER(Word, value_cache, 1),
            DEVICE_BUFFER(const BlockPair, pairs, 2),
            ARGUMENTS(CopyBlocksArguments, arguments, 3) THREAD_POSITIONS) {
  DECLARE_POSITIONS
  const BlockPair pair = pairs[group_position.y];
  const size_t size = size_t(arguments.words_per_block);
  const size_t source = size_t(pair.source) * size;
  const size_t target = size_t(pair.target) * size;
  const size_t first = size_t(group_position.x) * kCopyWordsPerGroup + thread_index;
  for (int i = 0; i < kCopyWordsPerGroup; i += kCopyThreads) {
    const size_t word = first + size_t(i);
    if (word < size) {
      key_cache[target + word] = key_cache[source + word];
      value_cache[target + word] = value_cache[source + word];
    }
  }
}
