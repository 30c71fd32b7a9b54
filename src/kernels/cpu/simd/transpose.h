// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cpu/simd/vector.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

#if VLLM_METAL_VECTOR_BYTES == 64

typedef double Doubles __attribute__((vector_size(VLLM_METAL_VECTOR_BYTES)));

// Transposes four registers within each quarter, a square of 4 by 4 lanes.
VLLM_METAL_INLINE void transpose_lanes(Floats& a, Floats& b, Floats& c, Floats& d) {
#define VLLM_METAL_LOW_LANES(x, y) \
  (Doubles) __builtin_shufflevector(x, y, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define VLLM_METAL_HIGH_LANES(x, y) \
  (Doubles)                         \
      __builtin_shufflevector(x, y, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
  const Doubles low[2] = {VLLM_METAL_LOW_LANES(a, b), VLLM_METAL_LOW_LANES(c, d)};
  const Doubles high[2] = {VLLM_METAL_HIGH_LANES(a, b), VLLM_METAL_HIGH_LANES(c, d)};
#undef VLLM_METAL_LOW_LANES
#undef VLLM_METAL_HIGH_LANES
  a = (Floats)__builtin_shufflevector(low[0], low[1], 0, 8, 2, 10, 4, 12, 6, 14);
  b = (Floats)__builtin_shufflevector(low[0], low[1], 1, 9, 3, 11, 5, 13, 7, 15);
  c = (Floats)__builtin_shufflevector(high[0], high[1], 0, 8, 2, 10, 4, 12, 6, 14);
  d = (Floats)__builtin_shufflevector(high[0], high[1], 1, 9, 3, 11, 5, 13, 7, 15);
}

// Quarters 0 and 2 of two registers, and quarters 1 and 3.
VLLM_METAL_INLINE Floats even_quarters(Floats a, Floats b) {
  return (Floats)__builtin_shufflevector((Doubles)a, (Doubles)b, 0, 1, 4, 5, 8, 9, 12, 13);
}
VLLM_METAL_INLINE Floats odd_quarters(Floats a, Floats b) {
  return (Floats)__builtin_shufflevector((Doubles)a, (Doubles)b, 2, 3, 6, 7, 10, 11, 14, 15);
}

// Transposes four registers as a square of 4 by 4 quarters.
VLLM_METAL_INLINE void transpose_quarters(Floats& a, Floats& b, Floats& c, Floats& d) {
  const Floats even[2] = {even_quarters(a, b), even_quarters(c, d)};
  const Floats odd[2] = {odd_quarters(a, b), odd_quarters(c, d)};
  a = even_quarters(even[0], even[1]);
  b = even_quarters(odd[0], odd[1]);
  c = odd_quarters(even[0], even[1]);
  d = odd_quarters(odd[0], odd[1]);
}

// Transposes a square of 16 registers. Every shuffle moves lanes within quarters or quarters whole:
// those that move any lane anywhere are slower.
VLLM_METAL_INLINE void transpose(Floats (&square)[kLanes]) {
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
    transpose_lanes(square[i], square[i + 1], square[i + 2], square[i + 3]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    transpose_quarters(square[i], square[i + 4], square[i + 8], square[i + 12]);
}

#else

// a0 b0 a1 b1 ... of the lower and of the upper halves.
#if VLLM_METAL_VECTOR_BYTES == 32
VLLM_METAL_INLINE Floats zip_low(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
VLLM_METAL_INLINE Floats zip_high(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#else
VLLM_METAL_INLINE Floats zip_low(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
VLLM_METAL_INLINE Floats zip_high(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
#endif

// Transposes a square of kLanes registers: zipping row i with row i + kLanes / 2, as often as it
// takes to halve kLanes down to one.
VLLM_METAL_INLINE void transpose(Floats (&square)[kLanes]) {
#pragma GCC unroll 4
  for (int width = kLanes; width > 1; width /= 2) {
    Floats zipped[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      zipped[2 * i] = zip_low(square[i], square[i + kLanes / 2]);
      zipped[2 * i + 1] = zip_high(square[i], square[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) square[i] = zipped[i];
  }
}

#endif

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
