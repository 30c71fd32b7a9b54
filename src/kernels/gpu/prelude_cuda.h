// SPDX-License-Identifier: Apache-2.0
// The words in which the kernels are written, for CUDA (see prelude_metal.h).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef int int32_t;
typedef long long int64_t;
typedef unsigned int uint;
typedef unsigned short ushort;
typedef __nv_bfloat16 bfloat;

#define KERNEL(threads) __global__ void __launch_bounds__(threads)
#define DEVICE_BUFFER(T, name, index) T* name
#define ARGUMENTS(T, name, index) const T name
#define THREAD_POSITIONS
#define DECLARE_POSITIONS                                    \
  const uint3 group_position = blockIdx;                     \
  [[maybe_unused]] const uint thread_index = threadIdx.x;    \
  [[maybe_unused]] const uint simd_group = threadIdx.x / 32; \
  [[maybe_unused]] const uint simd_lane = threadIdx.x % 32;

#define FUNC __device__ __forceinline__
#define DEVICE_POINTER(T) T*
#define THREADGROUP_POINTER(T) T*
#define THREADGROUP_ARRAY(T, name, size) __shared__ alignas(16) T name[size]
#define ARGUMENTS_REF(T) const T&
#define THREAD_REF(T) T&
#define THREAD_POINTER(T) T*
#define UNROLL _Pragma("unroll")

#define THREADGROUP_BARRIER() __syncthreads()
#define SIMDGROUP_FENCE() (void)0
#define HAS_SIMDGROUP_MATRIX 0
#define SCORED_HEADS 8

FUNC float fast_exp2(float x) { return exp2f(x); }
FUNC float inverse_sqrt(float x) { return rsqrtf(x); }
FUNC float accurate_tanh(float x) { return tanhf(x); }

FUNC float simd_shuffle(float value, ushort lane) { return __shfl_sync(0xffffffffu, value, lane); }
FUNC float simd_shuffle_xor(float value, ushort mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
FUNC float simd_sum(float value) {
  for (int mask = 16; mask > 0; mask /= 2) value += simd_shuffle_xor(value, mask);
  return value;
}

// Each of the values summed over the simdgroup. Step by step for all of them: shuffles keep their
// order, so that one sum after the other would wait for each of its steps.
template <int kCount>
FUNC void simd_sums(float* values) {
  UNROLL
  for (int mask = 16; mask > 0; mask /= 2) {
    UNROLL
    for (int i = 0; i < kCount; ++i) values[i] += simd_shuffle_xor(values[i], mask);
  }
}

template <typename T>
struct alignas(4 * sizeof(T)) FourValues {
  T values[4];
};

template <typename T>
FUNC void copy_four(T* to, const T* from) {
  *reinterpret_cast<FourValues<T>*>(to) = *reinterpret_cast<const FourValues<T>*>(from);
}

template <int kCount, typename T>
struct alignas((kCount % 4 == 0   ? 4
                : kCount % 2 == 0 ? 2
                                  : 1) *
               sizeof(T)) ValuesOfLane {
  T values[kCount];
};

template <int kCount, typename T>
FUNC void read_values(float* values, const T* from) {
  const ValuesOfLane<kCount, T> read = *reinterpret_cast<const ValuesOfLane<kCount, T>*>(from);
  UNROLL
  for (int i = 0; i < kCount; ++i) values[i] = float(read.values[i]);
}
