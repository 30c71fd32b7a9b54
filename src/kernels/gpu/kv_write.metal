// SPDX-License-Identifier: Apache-2.0

// One token a group: its keys and values go to the row that its slot names.
template <typename T>
KERNEL(kWriteThreads)
kv_write(DEVICE_BUFFER(const T, keys, 0), DEVICE_BUFFER(const T, values, 1),
         DEVICE_BUFFER(const int, slot_mapping, 2), DEVICE_BUFFER(T, key_cache, 3),
         DEVICE_BUFFER(T, value_cache, 4),
         ARGUMENTS(KVWriteArguments, arguments, 5) THREAD_POSITIONS) {
  DECLARE_POSITIONS
  const size_t token = group_position.x;
  const int slot = slot_mapping[token];
  const int row_size = slot < 0 ? 0 : arguments.num_kv_heads * arguments.head_dim;
  const size_t row = size_t(slot < 0 ? 0 : slot) * size_t(arguments.cache_row_stride);
  for (int i = int(thread_index); i < row_size; i += kWriteThreads) {
    const size_t head = size_t(i / arguments.head_dim);
    const size_t element = size_t(i % arguments.head_dim);
    key_cache[row + i] =
        keys[token * size_t(arguments.key_strides[0]) + head * size_t(arguments.key_strides[1]) +
             element * size_t(arguments.key_strides[2])];
    value_cache[row + i] = values[token * size_t(arguments.value_strides[0]) +
                                  head * size_t(arguments.value_strides[1]) +
                                  element * size_t(arguments.value_strides[2])];
  }
}
