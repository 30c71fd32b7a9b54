// SPDX-License-Identifier: Apache-2.0
// Attention of a tile of rows, (query, head) pairs of one key head, over all keys that they see
// (FlashAttention-2, arXiv:2307.08691). 8 rows a simdgroup; the keys, then the values of a block
// of keys pass through threadgroup memory; scores, weights and sums stay in registers.

// Loads the rows of keys [block, block + kKeys) of one key head into `tile`, `kPitch` apart. Rows
// outside [first, end) may hold anything, also NaN, and become 0.
template <typename T, int kHeadDim, int kKeys, int kPitch>
FUNC void load_tile(THREADGROUP_POINTER(T) tile, DEVICE_POINTER(const T) cache,
                    DEVICE_POINTER(const int) table, int block, int first, int end,
                    ARGUMENTS_REF(AttentionArguments) arguments, uint thread_index) {
  constexpr int kChunks = kHeadDim / 4;
  for (int i = int(thread_index); i < kKeys * kChunks; i += kPrefillThreads) {
    const int key = block + i / kChunks;
    const int element = i % kChunks * 4;
    THREADGROUP_POINTER(T) to = tile + i / kChunks * kPitch + element;
    if (key >= first && key < end) {
      const size_t row = size_t(cache_row(table, arguments.block_size, key));
      copy_four(to, cache + row * size_t(arguments.cache_row_stride) + element);
    } else {
      for (int j = 0; j < 4; ++j) to[j] = T(0.0f);
    }
  }
}

// The rows of one simdgroup, as one lane sees them.
template <int kHeadDim>
struct PrefillRows {
  FloatPair query[kHeadDim / 8];  // the lane's elements of its row, scaled
  FloatPair sums[kHeadDim / 8];   // weighted sum of values
  SoftmaxState softmax;           // sum: of the lane's own columns
  int first;                      // the lane's row sees the keys [first, end)
  int end;
};

template <typename T, int kHeadDim>
FUNC void read_queries(THREAD_REF(PrefillRows<kHeadDim>) rows, DEVICE_POINTER(const T) query,
                       float scale) {
  UNROLL
  for (int d = 0; d < kHeadDim / 8; ++d) {
    rows.query[d].first = rows.end > 0 ? float(query[d * 8]) * scale : 0.0f;
    rows.query[d].second = rows.end > 0 ? float(query[d * 8 + 1]) * scale : 0.0f;
    rows.sums[d].first = 0.0f;
    rows.sums[d].second = 0.0f;
  }
  rows.softmax.highest = NO_SCORE;
  rows.softmax.sum = 0.0f;
}

// Scores of a block's keys, `tile`, for the rows of this simdgroup.
template <typename Fragments, typename T, int kHeadDim, int kKeys, int kPitch>
FUNC void score_block(THREAD_POINTER(FloatPair) scores, THREAD_REF(PrefillRows<kHeadDim>) rows,
                      THREADGROUP_POINTER(const T) tile, FragmentPosition position, uint lane) {
  UNROLL
  for (int n = 0; n < kKeys / 8; ++n) {
    scores[n].first = 0.0f;
    scores[n].second = 0.0f;
  }
  UNROLL
  for (int d = 0; d < kHeadDim / 8; ++d) {
    const typename Fragments::Left left = Fragments::left(rows.query[d], lane);
    SIMDGROUP_FENCE();
    UNROLL
    for (int n = 0; n < kKeys / 8; ++n)
      Fragments::template accumulate<T>(scores[n], left, tile + n * 8 * kPitch + d * 8, 1, kPitch,
                                        position);
  }
}

// Turns scores into weights and brings the sums to the new highest score.
template <int kHeadDim, int kKeys>
FUNC void weigh_block(THREAD_POINTER(FloatPair) scores, THREAD_REF(PrefillRows<kHeadDim>) rows,
                      int first_column, float softcap) {
  float highest = NO_SCORE;
  UNROLL
  for (int n = 0; n < kKeys / 8; ++n) {
    const int key = first_column + n * 8;
    scores[n].first = score_of(scores[n].first, softcap);
    scores[n].second = score_of(scores[n].second, softcap);
    if (key >= rows.first && key < rows.end) highest = max(highest, scores[n].first);
    if (key + 1 >= rows.first && key + 1 < rows.end) highest = max(highest, scores[n].second);
  }
  highest = max(rows.softmax.highest, row_max(highest));
  const float correction = fast_exp2(rows.softmax.highest - highest);
  rows.softmax.highest = highest;
  rows.softmax.sum *= correction;
  UNROLL
  for (int n = 0; n < kKeys / 8; ++n) {
    const int key = first_column + n * 8;
    // Where nothing was seen yet, the difference of two "no score" would weigh 1.
    const bool sees_first = key >= rows.first && key < rows.end;
    const bool sees_second = key + 1 >= rows.first && key + 1 < rows.end;
    scores[n].first = sees_first ? fast_exp2(scores[n].first - highest) : 0.0f;
    scores[n].second = sees_second ? fast_exp2(scores[n].second - highest) : 0.0f;
    rows.softmax.sum += scores[n].first + scores[n].second;
  }
  UNROLL
  for (int d = 0; d < kHeadDim / 8; ++d) {
    rows.sums[d].first *= correction;
    rows.sums[d].second *= correction;
  }
}

// Adds the block's values, `tile`, by their weights.
template <typename Fragments, typename T, int kHeadDim, int kKeys, int kPitch>
FUNC void add_values(THREAD_REF(PrefillRows<kHeadDim>) rows, THREAD_POINTER(FloatPair) weights,
                     THREADGROUP_POINTER(const T) tile, FragmentPosition position, uint lane) {
  UNROLL
  for (int n = 0; n < kKeys / 8; ++n) {
    const typename Fragments::Left left = Fragments::left(weights[n], lane);
    UNROLL
    for (int d = 0; d < kHeadDim / 8; ++d) {
      if (kHeadDim >= 128) SIMDGROUP_FENCE();
      Fragments::template accumulate<T>(rows.sums[d], left, tile + n * 8 * kPitch + d * 8, kPitch,
                                        1, position);
    }
  }
}

// The keys that rows [first_row, end_row) of a request see together.
struct KeyRange {
  int first;
  int end;
};

FUNC KeyRange keys_of_rows(int first_row, int end_row, int group_size, int history, int window) {
  KeyRange keys;
  keys.first = first_visible_key(history + first_row / group_size + 1, window);
  keys.end = first_row < end_row ? history + (end_row - 1) / group_size + 1 : 0;
  return keys;
}

template <typename T, int kHeadDim, bool kMatrix>
KERNEL(kPrefillThreads)
attention_prefill(DEVICE_BUFFER(const T, queries, 0), DEVICE_BUFFER(const T, key_cache, 1),
                  DEVICE_BUFFER(const T, value_cache, 2), DEVICE_BUFFER(const int, block_tables, 3),
                  DEVICE_BUFFER(const int, query_starts, 4),
                  DEVICE_BUFFER(const int, context_lens, 5), DEVICE_BUFFER(const float, sinks, 6),
                  DEVICE_BUFFER(const PrefillTile, tiles, 7), DEVICE_BUFFER(T, outputs, 8),
                  ARGUMENTS(AttentionArguments, arguments, 9) THREAD_POSITIONS) {
  DECLARE_POSITIONS
  typedef typename FragmentsFor<kMatrix>::type Fragments;
  constexpr int kKeys = kHeadDim < 128 ? 32 : 16;  // of a block
  // Spreads the rows over the banks of the memory.
  constexpr int kPitch = kHeadDim + 16 / int(sizeof(T));
  THREADGROUP_ARRAY(T, tile, kKeys * kPitch);
  const PrefillTile work = tiles[group_position.y];
  const RequestView request =
      request_view(work.request, block_tables, query_starts, context_lens, arguments);
  const int group_size = arguments.num_heads / arguments.num_kv_heads;
  const FragmentPosition position = fragment_position(simd_lane);

  const int end_row = work.first_row + work.num_rows;
  const int first_simd_row = work.first_row + int(simd_group) * 8;
  const KeyRange tile_keys =
      keys_of_rows(work.first_row, end_row, group_size, request.history, arguments.window);
  const KeyRange simd_keys = keys_of_rows(first_simd_row, min(end_row, first_simd_row + 8),
                                          group_size, request.history, arguments.window);
  const int row = first_simd_row + position.row;
  const int head = int(group_position.x) * group_size + row % group_size;
  const size_t token = size_t(request.first_token + row / group_size);
  DEVICE_POINTER(const T) keys = key_cache + size_t(group_position.x) * kHeadDim;
  DEVICE_POINTER(const T) values = value_cache + size_t(group_position.x) * kHeadDim;

  PrefillRows<kHeadDim> rows;
  rows.end = row < end_row ? request.history + row / group_size + 1 : 0;
  rows.first = first_visible_key(rows.end, arguments.window);
  read_queries(rows,
               queries + token * size_t(arguments.query_token_stride) +
                   size_t(head) * size_t(arguments.query_head_stride) + position.column,
               query_scale(arguments));

  for (int block = tile_keys.first / kKeys * kKeys; block < tile_keys.end; block += kKeys) {
    const bool seen = block < simd_keys.end && block + kKeys > simd_keys.first;
    FloatPair scores[kKeys / 8];
    THREADGROUP_BARRIER();  // the values of the last block have been read
    load_tile<T, kHeadDim, kKeys, kPitch>(tile, keys, request.table, block, tile_keys.first,
                                          tile_keys.end, arguments, thread_index);
    THREADGROUP_BARRIER();
    if (seen) {
      score_block<Fragments, T, kHeadDim, kKeys, kPitch>(scores, rows, tile, position, simd_lane);
      weigh_block<kHeadDim, kKeys>(scores, rows, block + position.column, arguments.softcap);
    }
    THREADGROUP_BARRIER();  // the keys have been read
    load_tile<T, kHeadDim, kKeys, kPitch>(tile, values, request.table, block, tile_keys.first,
                                          tile_keys.end, arguments, thread_index);
    THREADGROUP_BARRIER();
    if (seen)
      add_values<Fragments, T, kHeadDim, kKeys, kPitch>(rows, scores, tile, position, simd_lane);
  }

  rows.softmax.sum = row_sum(rows.softmax.sum);
  if (row < end_row) {
    const float scale = final_scale(rows.softmax, sinks, head, arguments);
    const size_t first = (token * size_t(arguments.num_heads) + size_t(head)) * kHeadDim;
    DEVICE_POINTER(T) output = outputs + first + position.column;
    UNROLL
    for (int d = 0; d < kHeadDim / 8; ++d) {
      output[d * 8] = T(rows.sums[d].first * scale);
      output[d * 8 + 1] = T(rows.sums[d].second * scale);
    }
  }
}
