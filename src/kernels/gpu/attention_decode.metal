// SPDX-License-Identifier: Apache-2.0
// Attention of one query, kHeads query heads of one key head, over one split of its keys. Each
// simdgroup takes kKeysAtOnce keys in turn, each lane some elements of each row; then the
// simdgroups' sums are put together in threadgroup memory.

// Values of a row that one lane holds: the fewest with which 32 lanes hold it all.
template <int kHeadDim>
struct LaneValues {
  enum : int { kCount = kHeadDim == 80 ? 4 : (kHeadDim + kSimdWidth - 1) / kSimdWidth };
};

// One lane's part of kHeads query heads.
template <int kHeads, int kCount>
struct DecodeRows {
  float query[kHeads * kCount];  // scaled
  float sums[kHeads * kCount];   // weighted sum of values
  SoftmaxState softmax[kHeads];
};

// Where the rows of kKeysAtOnce keys begin in the caches. From `end` on it is the last key's row,
// so that reading needs no branch, between which the device could not have several rows under way.
FUNC void find_rows(THREAD_POINTER(size_t) offsets, DEVICE_POINTER(const int) table, int key,
                    int end, ARGUMENTS_REF(AttentionArguments) arguments) {
  UNROLL
  for (int i = 0; i < kKeysAtOnce; ++i) {
    const int row = cache_row(table, arguments.block_size, min(key + i, end - 1));
    offsets[i] = size_t(row) * size_t(arguments.cache_row_stride);
  }
}

// Reads the lane's values of those rows.
template <int kCount, typename T>
FUNC void read_rows(THREAD_POINTER(float) rows, DEVICE_POINTER(const T) cache,
                    THREAD_POINTER(const size_t) offsets) {
  UNROLL
  for (int i = 0; i < kKeysAtOnce; ++i) read_values<kCount>(rows + i * kCount, cache + offsets[i]);
}

// Scores of kKeysAtOnce keys with one head after the other.
template <int kHeads, int kCount>
FUNC void find_scores(THREAD_POINTER(float) scores, THREAD_POINTER(const float) queries,
                      THREAD_POINTER(const float) keys, float softcap) {
  UNROLL
  for (int i = 0; i < kHeads * kKeysAtOnce; ++i) {
    const int query = i / kKeysAtOnce * kCount;
    const int key = i % kKeysAtOnce * kCount;
    float product = 0.0f;
    UNROLL
    for (int e = 0; e < kCount; ++e) product += queries[query + e] * keys[key + e];
    scores[i] = product;
  }
  simd_sums<kHeads * kKeysAtOnce>(scores);
  if (softcap > 0.0f) {
    UNROLL
    for (int i = 0; i < kHeads * kKeysAtOnce; ++i) scores[i] = score_of(scores[i], softcap);
  }
}

// Takes kKeysAtOnce keys, of which num_keys or more exist, into one head.
template <int kCount>
FUNC void attend(THREAD_POINTER(const float) scores, THREAD_POINTER(float) sums,
                 THREAD_REF(SoftmaxState) softmax, THREAD_POINTER(const float) values,
                 int num_keys) {
  float highest = softmax.highest;
  UNROLL
  for (int i = 0; i < kKeysAtOnce; ++i) highest = max(highest, i < num_keys ? scores[i] : NO_SCORE);
  const float correction = fast_exp2(softmax.highest - highest);
  softmax.highest = highest;
  softmax.sum *= correction;
  UNROLL
  for (int e = 0; e < kCount; ++e) sums[e] *= correction;
  UNROLL
  for (int i = 0; i < kKeysAtOnce; ++i) {
    const float weight = i < num_keys ? fast_exp2(scores[i] - highest) : 0.0f;
    softmax.sum += weight;
    UNROLL
    for (int e = 0; e < kCount; ++e) sums[e] += weight * values[i * kCount + e];
  }
}

// What the simdgroups have found of one head, put together.
template <int kSimdgroups>
FUNC SoftmaxState merge_softmax(THREADGROUP_POINTER(const SoftmaxState) parts) {
  SoftmaxState merged;
  merged.highest = NO_SCORE;
  for (int i = 0; i < kSimdgroups; ++i) {
    const SoftmaxState part = parts[i];
    merged.highest = max(merged.highest, part.highest);
  }
  merged.sum = 0.0f;
  for (int i = 0; i < kSimdgroups; ++i) {
    const SoftmaxState part = parts[i];
    merged.sum += part.sum * fast_exp2(part.highest - merged.highest);
  }
  return merged;
}

// One element of the weighted sum of values; a simdgroup's part is kHeadDim after the last one's.
template <int kSimdgroups, int kHeadDim>
FUNC float merge_sums(THREADGROUP_POINTER(const float) sums,
                      THREADGROUP_POINTER(const SoftmaxState) parts, float highest) {
  float sum = 0.0f;
  for (int i = 0; i < kSimdgroups; ++i) {
    const SoftmaxState part = parts[i];
    sum += sums[i * kHeadDim] * fast_exp2(part.highest - highest);
  }
  return sum;
}

template <typename T, int kHeadDim, int kHeads>
KERNEL(kDecodeThreads)
attention_decode(DEVICE_BUFFER(const T, queries, 0), DEVICE_BUFFER(const T, key_cache, 1),
                 DEVICE_BUFFER(const T, value_cache, 2), DEVICE_BUFFER(const int, block_tables, 3),
                 DEVICE_BUFFER(const int, query_starts, 4),
                 DEVICE_BUFFER(const int, context_lens, 5), DEVICE_BUFFER(const float, sinks, 6),
                 DEVICE_BUFFER(const DecodeWork, works, 7), DEVICE_BUFFER(T, outputs, 8),
                 ARGUMENTS(AttentionArguments, arguments, 9),
                 DEVICE_BUFFER(float, partial_outputs, 10),
                 DEVICE_BUFFER(float, partial_sums, 11) THREAD_POSITIONS) {
  DECLARE_POSITIONS
  constexpr int kCount = LaneValues<kHeadDim>::kCount;
  constexpr int kSimdgroups = int(kDecodeThreads) / int(kSimdWidth);
  THREADGROUP_ARRAY(float, shared_sums, kSimdgroups* kHeadDim);
  THREADGROUP_ARRAY(SoftmaxState, shared_softmax, kSimdgroups * kHeads);
  const DecodeWork work = works[group_position.y];
  const RequestView request =
      request_view(work.request, block_tables, query_starts, context_lens, arguments);
  const int group_size = arguments.num_heads / arguments.num_kv_heads;
  const int parts = (group_size + kHeads - 1) / kHeads;  // groups that share a key head
  const size_t kv_head = group_position.x / uint(parts);
  const int first_of_group = int(group_position.x) % parts * kHeads;
  const int num_heads = min(kHeads, group_size - first_of_group);
  const int first_head = int(kv_head) * group_size + first_of_group;
  const size_t token = size_t(request.first_token + work.query);

  const int first_element = int(simd_lane) * kCount;
  const bool lane_used = first_element < kHeadDim;
  const float scale = query_scale(arguments);
  DecodeRows<kHeads, kCount> rows;
  UNROLL
  for (int head = 0; head < kHeads; ++head) {
    const size_t offset = token * size_t(arguments.query_token_stride) +
                          size_t(first_head + head) * size_t(arguments.query_head_stride);
    const bool used = lane_used && head < num_heads;
    UNROLL
    for (int e = 0; e < kCount; ++e) {
      rows.query[head * kCount + e] =
          used ? float(queries[offset + size_t(first_element + e)]) * scale : 0.0f;
      rows.sums[head * kCount + e] = 0.0f;
    }
    rows.softmax[head].highest = NO_SCORE;
    rows.softmax[head].sum = 0.0f;
  }

  const int visible_end = request.history + work.query + 1;
  const int end = min(work.end_key, visible_end);
  const int first = max(work.first_key, first_visible_key(visible_end, arguments.window));
  // Lanes beyond the rows read what lane 0 does; their part of the query is 0.
  const size_t row_offset = kv_head * kHeadDim + size_t(lane_used ? first_element : 0);
  for (int key = first + int(simd_group) * kKeysAtOnce; key < end;
       key += kSimdgroups * kKeysAtOnce) {
    float keys[kKeysAtOnce * kCount];
    float values[kKeysAtOnce * kCount];
    size_t offsets[kKeysAtOnce];
    find_rows(offsets, request.table, key, end, arguments);
    read_rows<kCount>(keys, key_cache + row_offset, offsets);
    read_rows<kCount>(values, value_cache + row_offset, offsets);
    constexpr int kScored = kHeads < SCORED_HEADS ? kHeads : SCORED_HEADS;
    UNROLL
    for (int first_scored = 0; first_scored < kHeads; first_scored += kScored) {
      float scores[kScored * kKeysAtOnce];
      find_scores<kScored, kCount>(scores, rows.query + first_scored * kCount, keys,
                                   arguments.softcap);
      UNROLL
      for (int i = 0; i < kScored; ++i) {
        const int head = first_scored + i;
        attend<kCount>(scores + i * kKeysAtOnce, rows.sums + head * kCount, rows.softmax[head],
                       values, end - key);
      }
    }
  }

  if (simd_lane == 0) {
    for (int head = 0; head < kHeads; ++head)
      shared_softmax[head * kSimdgroups + int(simd_group)] = rows.softmax[head];
  }
  UNROLL
  for (int head = 0; head < kHeads; ++head) {
    for (int e = 0; e < kCount; ++e) {
      if (lane_used)
        shared_sums[int(simd_group) * kHeadDim + first_element + e] = rows.sums[head * kCount + e];
    }
    THREADGROUP_BARRIER();
    if (head < num_heads) {
      const SoftmaxState merged = merge_softmax<kSimdgroups>(shared_softmax + head * kSimdgroups);
      const size_t index = size_t(first_head + head);
      const size_t output = (token * size_t(arguments.num_heads) + index) * kHeadDim;
      const size_t partial = size_t(max(work.partial, 0)) * size_t(arguments.num_heads) + index;
      const bool whole = work.partial < 0;
      const float scale = whole ? final_scale(merged, sinks, int(index), arguments) : 1.0f;
      for (int d = int(thread_index); d < kHeadDim; d += kDecodeThreads) {
        const float sum = merge_sums<kSimdgroups, kHeadDim>(
            shared_sums + d, shared_softmax + head * kSimdgroups, merged.highest);
        if (whole) {
          outputs[output + size_t(d)] = T(sum * scale);
        } else {
          partial_outputs[partial * kHeadDim + size_t(d)] = sum;
        }
      }
      if (!whole && thread_index == 0) {
        partial_sums[partial * 2] = merged.highest;
        partial_sums[partial * 2 + 1] = merged.sum;
      }
    }
    THREADGROUP_BARRIER();  // shared_sums has been read
  }
}
