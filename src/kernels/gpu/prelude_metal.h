// SPDX-License-Identifier: Apache-2.0
// The words in which the kernels are written, for Metal.
#pragma once

#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
#include <metal_stdlib>

using metal::max;
using metal::min;
using metal::simd_shuffle;
using metal::simd_shuffle_xor;
using metal::simd_sum;
using metal::simdgroup_matrix;
using metal::simdgroup_multiply_accumulate;

// A kernel, how many threads of a group run it, its parameters and the place of a thread:
// group_position (uint3), thread_index in the group, simd_group in the group, simd_lane in the
// simdgroup.
#define KERNEL(threads) [[kernel, max_total_threads_per_threadgroup(threads)]] void
#define DEVICE_BUFFER(T, name, index) device T* name [[buffer(index)]]
#define ARGUMENTS(T, name, index) constant T& name [[buffer(index)]]
#define THREAD_POSITIONS                                   \
  , uint3 group_position [[threadgroup_position_in_grid]], \
      uint thread_index [[thread_index_in_threadgroup]],   \
      uint simd_group [[simdgroup_index_in_threadgroup]],  \
      uint simd_lane [[thread_index_in_simdgroup]]
#define DECLARE_POSITIONS
#define INSTANTIATE_KERNEL(name, function, ...) \
  template [[host_name(name)]] [[kernel]] decltype(function<__VA_ARGS__>) function<__VA_ARGS__>;

// Functions, and the memory that their pointers and references lead to.
#define FUNC inline __attribute__((always_inline))
#define DEVICE_POINTER(T) device T*
#define THREADGROUP_POINTER(T) threadgroup T*
#define THREADGROUP_ARRAY(T, name, size) threadgroup T name[size]
#define ARGUMENTS_REF(T) constant T&
#define THREAD_REF(T) thread T&
#define THREAD_POINTER(T) thread T*
#define UNROLL _Pragma("clang loop unroll(full)")

#define THREADGROUP_BARRIER() metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup)
// Nothing is moved over it: in an unrolled loop of products the compiler would load for all of them
// before the first, and run out of registers.
#define SIMDGROUP_FENCE() metal::simdgroup_barrier(metal::mem_flags::mem_none)
#define HAS_SIMDGROUP_MATRIX 1
#define SCORED_HEADS 1  // query heads whose scores attention_decode holds at a time

FUNC float fast_exp2(float x) { return metal::fast::exp2(x); }
FUNC float inverse_sqrt(float x) { return metal::precise::rsqrt(x); }
// The fast one is inf / inf where the score is far above the cap.
FUNC float accurate_tanh(float x) { return metal::precise::tanh(x); }

// Each of the values summed over the simdgroup.
template <int kCount>
FUNC void simd_sums(thread float* values) {
  UNROLL
  for (int i = 0; i < kCount; ++i) values[i] = simd_sum(values[i]);
}

template <typename T>
struct alignas(4 * sizeof(T)) FourValues {
  T values[4];
};

// Copies 4 values that lie at a multiple of their size.
template <typename T>
FUNC void copy_four(threadgroup T* to, device const T* from) {
  *(threadgroup FourValues<T>*)to = *(device const FourValues<T>*)from;
}

template <int kCount, typename T>
FUNC void read_values(thread float* values, device const T* from) {
  UNROLL
  for (int i = 0; i < kCount; ++i) values[i] = float(from[i]);
}
