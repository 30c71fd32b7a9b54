// SPDX-License-Identifier: Apache-2.0
// The words in which the kernels are written, for the harness (see gpu/prelude_metal.h in src).
#pragma once

#include <algorithm>
#include <cmath>

#include "gpu/float_types.h"
#include "gpu/threadgroup.h"

#define KERNEL(threads) void
#define DEVICE_BUFFER(T, name, index) DEVICE_POINTER(T) name
#define ARGUMENTS(T, name, index) const T& name
#define THREAD_POSITIONS
#define DECLARE_POSITIONS                                                                      \
  const gpu_harness::uint3 group_position = gpu_harness::Dispatch::current().group_position(); \
  [[maybe_unused]] const unsigned thread_index = gpu_harness::Dispatch::current().thread();    \
  [[maybe_unused]] const unsigned simd_group = thread_index / gpu_harness::kSimdWidth;         \
  [[maybe_unused]] const unsigned simd_lane = thread_index % gpu_harness::kSimdWidth;

#define FUNC inline
#define DEVICE_POINTER(T) gpu_harness::CheckedPointer<gpu_harness::Space::kDevice, T>
#define THREADGROUP_POINTER(T) gpu_harness::CheckedPointer<gpu_harness::Space::kThreadgroup, T>
#define THREADGROUP_ARRAY(T, name, size) \
  const auto name =                      \
      gpu_harness::Dispatch::current().memory().array<T>(#name, __FILE__, __LINE__, size)
#define ARGUMENTS_REF(T) const T&
#define THREAD_REF(T) T&
#define THREAD_POINTER(T) T*
#define UNROLL

#define THREADGROUP_BARRIER() \
  gpu_harness::Dispatch::current().barrier({"threadgroup_barrier", __FILE__, __LINE__})
#define SIMDGROUP_FENCE() (void)0
#define HAS_SIMDGROUP_MATRIX 1
#define SCORED_HEADS 1

namespace gpu_harness {

using uint = unsigned;
using ushort = unsigned short;

struct uint4 {  // 16 bytes, not aligned: buffers of the CPU begin at multiples of 8
  unsigned x, y, z, w;
};

inline int min(int a, int b) { return std::min(a, b); }
inline int max(int a, int b) { return std::max(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline float fast_exp2(float x) { return std::exp2(x); }
inline float inverse_sqrt(float x) { return 1.0f / std::sqrt(x); }
inline float accurate_tanh(float x) { return std::tanh(x); }

template <typename In, typename Out>
Out exchange(const Site& site, const In& value, Dispatch::Combine combine) {
  Exchange input;
  input.set(value);
  return Dispatch::current().exchange(site, input, combine).template get<Out>();
}

// Calls of different lines of a source are different meetings.
#define GPU_HARNESS_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline float simd_sum(float value, GPU_HARNESS_SITE) {
  return exchange<float, float>({"simd_sum", file, line}, value, [](const auto& in, auto& out) {
    // By halves, as the lanes of a GPU do it.
    std::array<float, kSimdWidth> sums;
    for (int i = 0; i < kSimdWidth; ++i) sums[i] = in[i].template get<float>();
    for (int half = kSimdWidth / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    for (auto& lane : out) lane.set(sums[0]);
  });
}

template <int kCount>
void simd_sums(float* values) {
  for (int i = 0; i < kCount; ++i) values[i] = simd_sum(values[i]);
}

inline float simd_max(float value, GPU_HARNESS_SITE) {
  return exchange<float, float>({"simd_max", file, line}, value, [](const auto& in, auto& out) {
    float highest = in[0].template get<float>();
    for (const auto& lane : in) highest = max(highest, lane.template get<float>());
    for (auto& lane : out) lane.set(highest);
  });
}

struct ShuffledValue {
  float value;
  int source;  // lane
};

inline float shuffle(const Site& site, const ShuffledValue& value) {
  if (value.source < 0 || value.source >= kSimdWidth)
    throw KernelError(site.text() + ": no lane " + std::to_string(value.source));
  return exchange<ShuffledValue, float>(site, value, [](const auto& in, auto& out) {
    for (int i = 0; i < kSimdWidth; ++i) {
      const int source = in[i].template get<ShuffledValue>().source;
      out[i].set(in[source].template get<ShuffledValue>().value);
    }
  });
}

inline int lane_of_thread() { return Dispatch::current().thread() % kSimdWidth; }

inline float simd_shuffle(float value, ushort lane, GPU_HARNESS_SITE) {
  return shuffle({"simd_shuffle", file, line}, {value, lane});
}
inline float simd_shuffle_xor(float value, ushort mask, GPU_HARNESS_SITE) {
  return shuffle({"simd_shuffle_xor", file, line}, {value, lane_of_thread() ^ mask});
}
inline float simd_shuffle_down(float value, ushort delta, GPU_HARNESS_SITE) {
  return shuffle({"simd_shuffle_down", file, line}, {value, lane_of_thread() + delta});
}
inline float simd_shuffle_up(float value, ushort delta, GPU_HARNESS_SITE) {
  return shuffle({"simd_shuffle_up", file, line}, {value, lane_of_thread() - delta});
}
inline float simd_broadcast(float value, ushort lane, GPU_HARNESS_SITE) {
  return shuffle({"simd_broadcast", file, line}, {value, lane});
}

// Where an 8 x 8 matrix lies in the lanes: two neighbours of a row each.
inline int matrix_row(int lane) { return (lane >> 2 & 4) | (lane >> 1 & 3); }
inline int matrix_column(int lane) { return (lane >> 1 & 4) | (lane << 1 & 2); }

template <typename T, int kRows, int kColumns>
class simdgroup_matrix {
  static_assert(kRows == 8 && kColumns == 8);

 public:
  std::array<T, 2>& thread_elements() { return elements_; }
  const std::array<T, 2>& thread_elements() const { return elements_; }

 private:
  std::array<T, 2> elements_;
};

struct MatrixOperands {
  float a[2], b[2], c[2];
};

inline void multiply_matrices(const Dispatch::Lanes& in, Dispatch::Lanes& out) {
  float a[8][8], b[8][8], c[8][8];
  for (int lane = 0; lane < kSimdWidth; ++lane) {
    const auto own = in[lane].get<MatrixOperands>();
    for (int i = 0; i < 2; ++i) {
      a[matrix_row(lane)][matrix_column(lane) + i] = own.a[i];
      b[matrix_row(lane)][matrix_column(lane) + i] = own.b[i];
      c[matrix_row(lane)][matrix_column(lane) + i] = own.c[i];
    }
  }
  for (int m = 0; m < 8; ++m)
    for (int k = 0; k < 8; ++k)
      for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
  for (int lane = 0; lane < kSimdWidth; ++lane) {
    const float* own = &c[matrix_row(lane)][matrix_column(lane)];
    out[lane].set(std::array<float, 2>{own[0], own[1]});
  }
}

template <typename D, typename A, typename B, typename C>
void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                   const simdgroup_matrix<B, 8, 8>& b,
                                   const simdgroup_matrix<C, 8, 8>& c, GPU_HARNESS_SITE) {
  MatrixOperands operands;
  for (int i = 0; i < 2; ++i) {
    operands.a[i] = float(a.thread_elements()[i]);
    operands.b[i] = float(b.thread_elements()[i]);
    operands.c[i] = float(c.thread_elements()[i]);
  }
  const auto result = exchange<MatrixOperands, std::array<float, 2>>(
      {"simdgroup_multiply_accumulate", file, line}, operands, multiply_matrices);
  for (int i = 0; i < 2; ++i) d.thread_elements()[i] = D(result[i]);
}

inline void meet_lanes(const Site& site) {
  exchange<int, int>(site, 0, [](const Dispatch::Lanes&, Dispatch::Lanes& out) {
    for (auto& lane : out) lane.set(0);
  });
}

template <typename T, Space kSpace, typename U>
void simdgroup_load(simdgroup_matrix<T, 8, 8>& matrix, CheckedPointer<kSpace, U> source,
                    size_t elements_per_row, GPU_HARNESS_SITE) {
  meet_lanes({"simdgroup_load", file, line});
  const int lane = lane_of_thread();
  for (int i = 0; i < 2; ++i)
    matrix.thread_elements()[i] =
        T(source[matrix_row(lane) * elements_per_row + matrix_column(lane) + i]);
}

template <typename T, Space kSpace>
void simdgroup_store(const simdgroup_matrix<T, 8, 8>& matrix, CheckedPointer<kSpace, T> target,
                     size_t elements_per_row, GPU_HARNESS_SITE) {
  meet_lanes({"simdgroup_store", file, line});
  const int lane = lane_of_thread();
  for (int i = 0; i < 2; ++i)
    target[matrix_row(lane) * elements_per_row + matrix_column(lane) + i] =
        matrix.thread_elements()[i];
}

// The device copies four at once, so they must lie at a multiple of four.
template <typename T>
void copy_four(CheckedPointer<Space::kThreadgroup, T> to,
               CheckedPointer<Space::kDevice, const T> from) {
  if (!to.aligned(4) || !from.aligned(4)) throw KernelError("copy_four at no multiple of four");
  for (int i = 0; i < 4; ++i) to[i] = from[i];
}

template <int kCount, typename T>
void read_values(float* values, CheckedPointer<Space::kDevice, const T> from) {
  if (!from.aligned(kCount)) throw KernelError("read_values at no multiple of their number");
  for (int i = 0; i < kCount; ++i) values[i] = float(from[i]);
}

}  // namespace gpu_harness
