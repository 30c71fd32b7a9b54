// SPDX-License-Identifier: Apache-2.0

// Puts the splits of one query and head together, in the order in which they lie.
template <typename T, int kHeadDim>
KERNEL(kMergeThreads)
attention_merge(DEVICE_BUFFER(const float, partial_outputs, 0),
                DEVICE_BUFFER(const float, partial_sums, 1), DEVICE_BUFFER(const float, sinks, 2),
                DEVICE_BUFFER(const MergeWork, works, 3), DEVICE_BUFFER(T, outputs, 4),
                ARGUMENTS(AttentionArguments, arguments, 5) THREAD_POSITIONS) {
  DECLARE_POSITIONS
  const MergeWork work = works[group_position.y];
  const size_t num_heads = size_t(arguments.num_heads);
  const size_t head = group_position.x;
  const size_t first = size_t(work.first_partial) * num_heads + head;

  SoftmaxState merged;
  merged.highest = NO_SCORE;
  for (int i = 0; i < work.num_partials; ++i)
    merged.highest = max(merged.highest, partial_sums[(first + size_t(i) * num_heads) * 2]);
  merged.sum = 0.0f;
  for (int i = 0; i < work.num_partials; ++i) {
    const size_t partial = first + size_t(i) * num_heads;
    merged.sum +=
        partial_sums[partial * 2 + 1] * fast_exp2(partial_sums[partial * 2] - merged.highest);
  }
  const float scale = final_scale(merged, sinks, int(head), arguments);

  for (int d = int(thread_index); d < kHeadDim; d += kMergeThreads) {
    float sum = 0.0f;
    for (int i = 0; i < work.num_partials; ++i) {
      const size_t partial = first + size_t(i) * num_heads;
      sum += partial_outputs[partial * kHeadDim + size_t(d)] *
             fast_exp2(partial_sums[partial * 2] - merged.highest);
    }
    outputs[(size_t(work.token) * num_heads + head) * kHeadDim + size_t(d)] = T(sum * scale);
  }
}
