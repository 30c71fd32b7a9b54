// SPDX-License-Identifier: Apache-2.0

// kRotaryHeads heads of one token's query, key and value heads a group: queries and keys are
// turned, keys and values go to the row that the token's slot names.
template <typename T>
KERNEL(kWriteThreads)
rotary_kv_write(DEVICE_BUFFER(const T, qkv, 0), DEVICE_BUFFER(const float, cos_sin, 1),
                DEVICE_BUFFER(const int, slot_mapping, 2), DEVICE_BUFFER(T, key_cache, 3),
                DEVICE_BUFFER(T, value_cache, 4), DEVICE_BUFFER(T, queries, 5),
                ARGUMENTS(RotaryKVWriteArguments, arguments, 6) THREAD_POSITIONS) {
  DECLARE_POSITIONS
  const size_t token = group_position.x;
  const int head_dim = arguments.head_dim;
  const int num_pairs = arguments.rotary_dim / 2;
  const int num_rotated = arguments.num_heads + arguments.num_kv_heads;
  const int first_head = int(group_position.y) * kRotaryHeads;
  const int end_head = min(first_head + kRotaryHeads, num_rotated + arguments.num_kv_heads);
  const int slot = slot_mapping[token];
  const size_t row = size_t(slot < 0 ? 0 : slot) * size_t(arguments.cache_row_stride);
  const size_t first_query = token * size_t(arguments.num_heads) * size_t(head_dim);
  DEVICE_POINTER(const T)
  heads = qkv + token * size_t(num_rotated + arguments.num_kv_heads) * size_t(head_dim);
  DEVICE_POINTER(const float) angles = cos_sin + token * size_t(arguments.rotary_dim);
  const int end = end_head * head_dim;
  for (int i = first_head * head_dim + int(thread_index); i < end; i += kWriteThreads) {
    const int head = int(uint(i) / uint(head_dim));
    const int element = i - head * head_dim;
    T value = heads[i];
    if (head < num_rotated && element < 2 * num_pairs) {
      const bool is_first = element < num_pairs;  // of a pair
      const int pair = is_first ? element : element - num_pairs;
      const float other = float(heads[is_first ? i + num_pairs : i - num_pairs]);
      const float sine = angles[num_pairs + pair];
      value = T(float(value) * angles[pair] + other * (is_first ? -sine : sine));
    }
    if (head < arguments.num_heads) {
      queries[first_query + size_t(i)] = value;
    } else if (slot >= 0 && head < num_rotated) {
      key_cache[row + size_t(i - arguments.num_heads * head_dim)] = value;
    } else if (slot >= 0) {
      value_cache[row + size_t(i - num_rotated * head_dim)] = value;
    }
  }
}
