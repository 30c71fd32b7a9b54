// SPDX-License-Identifier: Apache-2.0
// Products of 8 x 8 matrices that the 32 lanes of a simdgroup hold, two elements a lane:
//
//   lane bits   4 3 2 1 0      row    = bits 4, 2, 1
//                              column = bits 3, 0, and 0 or 1 for the lane's two elements
//
// This is how thread_elements() of a simdgroup_matrix lies in the lanes. Lanes of one row differ
// in bits 0 and 3.

struct FloatPair {
  float first;
  float second;
};

// Place of a lane's first element; its second one is in the next column.
struct FragmentPosition {
  int row;
  int column;
};

FUNC FragmentPosition fragment_position(uint lane) {
  FragmentPosition position;
  position.row = int(((lane >> 2) & 4u) | ((lane >> 1) & 3u));
  position.column = int(((lane >> 1) & 4u) | ((lane << 1) & 2u));
  return position;
}

FUNC float row_max(float value) {
  value = max(value, simd_shuffle_xor(value, ushort(1)));
  return max(value, simd_shuffle_xor(value, ushort(8)));
}

FUNC float row_sum(float value) {
  value += simd_shuffle_xor(value, ushort(1));
  return value + simd_shuffle_xor(value, ushort(8));
}

// sums += left * right with plain arithmetic. `right` has element (k, n) at
// right[k * k_stride + n * n_stride]; a lane's part of `left` becomes a Left first, once for all
// the products that it is in.
struct PlainFragments {
  struct Left {
    float row[8];  // of the lane's row
  };

  static FUNC Left left(FloatPair own, uint lane) {
    Left result;
    UNROLL
    for (uint k = 0; k < 8; k += 2) {
      const ushort source = ushort((lane & ~9u) | ((k & 2u) >> 1) | ((k & 4u) << 1));
      result.row[k] = simd_shuffle(own.first, source);
      result.row[k + 1] = simd_shuffle(own.second, source);
    }
    return result;
  }

  template <typename T>
  static FUNC void accumulate(THREAD_REF(FloatPair) sums, THREAD_REF(const Left) left,
                              THREADGROUP_POINTER(const T) right, int k_stride, int n_stride,
                              FragmentPosition position) {
    right += position.column * n_stride;
    UNROLL
    for (int k = 0; k < 8; ++k) {
      sums.first += left.row[k] * float(right[k * k_stride]);
      sums.second += left.row[k] * float(right[k * k_stride + n_stride]);
    }
  }
};

#if HAS_SIMDGROUP_MATRIX
// The same on the matrix units. All is float32: products of half and bfloat are exact in it.
struct MatrixFragments {
  typedef FloatPair Left;

  static FUNC Left left(FloatPair own, uint lane) { return own; }

  template <typename T>
  static FUNC void accumulate(THREAD_REF(FloatPair) sums, THREAD_REF(const Left) left,
                              THREADGROUP_POINTER(const T) right, int k_stride, int n_stride,
                              FragmentPosition position) {
    right += position.row * k_stride + position.column * n_stride;
    simdgroup_matrix<float, 8, 8> a, b, c, d;
    a.thread_elements()[0] = left.first;
    a.thread_elements()[1] = left.second;
    b.thread_elements()[0] = float(right[0]);
    b.thread_elements()[1] = float(right[n_stride]);
    c.thread_elements()[0] = sums.first;
    c.thread_elements()[1] = sums.second;
    simdgroup_multiply_accumulate(d, a, b, c);
    sums.first = d.thread_elements()[0];
    sums.second = d.thread_elements()[1];
  }
};
#endif

template <bool kMatrix>
struct FragmentsFor {
  typedef PlainFragments type;
};

#if HAS_SIMDGROUP_MATRIX
template <>
struct FragmentsFor<true> {
  typedef MatrixFragments type;
};
#endif
