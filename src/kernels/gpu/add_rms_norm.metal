// SPDX-License-Identifier: Apache-2.0

// One row a group: x + residual, rounded, and the norm of what is rounded times the weight, which
// is rounded once more.
template <typename T>
KERNEL(kNormThreads)
add_rms_norm(DEVICE_BUFFER(const T, x, 0), DEVICE_BUFFER(const T, residual, 1),
             DEVICE_BUFFER(const T, weight, 2), DEVICE_BUFFER(T, sums, 3),
             DEVICE_BUFFER(T, normalized, 4),
             ARGUMENTS(AddRmsNormArguments, arguments, 5) THREAD_POSITIONS) {
  DECLARE_POSITIONS
  THREADGROUP_ARRAY(float, group_squares, kNormThreads / kSimdWidth);
  const int size = arguments.size;
  const size_t row = size_t(group_position.x) * size_t(size);
  const int first = int(thread_index) * kNormValues;

  float squares = 0.0f;
  for (int i = first; i < size; i += kNormThreads * kNormValues) {
    UNROLL
    for (int k = 0; k < kNormValues; ++k) {
      if (i + k < size) {
        const size_t at = row + size_t(i + k);
        const T sum = T(float(x[at]) + float(residual[at]));
        sums[at] = sum;
        squares += float(sum) * float(sum);
      }
    }
  }
  squares = simd_sum(squares);
  if (simd_lane == 0) group_squares[simd_group] = squares;
  THREADGROUP_BARRIER();
  float total = 0.0f;
  UNROLL
  for (int i = 0; i < kNormThreads / kSimdWidth; ++i) total += group_squares[i];
  const float scale = inverse_sqrt(total / float(size) + arguments.eps);

  // Each thread reads the sums that it has written.
  for (int i = first; i < size; i += kNormThreads * kNormValues) {
    UNROLL
    for (int k = 0; k < kNormValues; ++k) {
      if (i + k < size) {
        const size_t at = row + size_t(i + k);
        normalized[at] = T(float(sums[at]) * scale * float(weight[i + k]));
      }
    }
  }
}
