// SPDX-License-Identifier: Apache-2.0
// Portable SIMD on the vector extensions of GCC and Clang: one source, compiled once for each
// instruction set. Everything lives in a namespace named after the set, so that no symbol of one
// build can stand in for that of another; only C headers may be included.
#pragma once

#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "kernels/cpu/simd/element_type.h"

#define VLLM_METAL_INLINE inline __attribute__((always_inline))

// Before a loop over registers, of up to 16 turns: without it GCC keeps arrays of registers in
// memory. The address sanitizer's checks make such code too long to compile.
#if defined(__SANITIZE_ADDRESS__)
#define VLLM_METAL_UNROLL
#else
#define VLLM_METAL_UNROLL _Pragma("GCC unroll 16")
#endif

namespace vllm_metal::cpu::VLLM_METAL_ISA {

#if defined(__AVX512F__)
#define VLLM_METAL_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VLLM_METAL_VECTOR_BYTES 32
#else
#define VLLM_METAL_VECTOR_BYTES 16
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kNumRegisters = 32;
#else
constexpr int kNumRegisters = 16;
#endif

// One register of lanes. The operators + - * / < == ? : & | ^ << >> work lane by lane, also with
// a scalar on one side. A comparison gives Ints, all bits set where it holds.
constexpr int kLanes = VLLM_METAL_VECTOR_BYTES / 4;
typedef float Floats __attribute__((vector_size(VLLM_METAL_VECTOR_BYTES)));
typedef int32_t Ints __attribute__((vector_size(VLLM_METAL_VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(VLLM_METAL_VECTOR_BYTES)));
// As many lanes of narrower elements.
typedef uint16_t HalfWords __attribute__((vector_size(VLLM_METAL_VECTOR_BYTES / 2)));
typedef uint8_t Bytes __attribute__((vector_size(VLLM_METAL_VECTOR_BYTES / 4)));

// Storage of the 16-bit element types; kernels are templates over {float, Float16, Bfloat16}.
struct Float16 {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

VLLM_METAL_INLINE Floats broadcast(float value) { return value - Floats{}; }
VLLM_METAL_INLINE Floats as_floats(Words bits) { return (Floats)bits; }
VLLM_METAL_INLINE Words as_words(Floats values) { return (Words)values; }
VLLM_METAL_INLINE Words as_words(Ints values) { return (Words)values; }

// a * b + c, rounded once where the instruction set can. The instruction itself: whether compilers
// contract the expression depends on the code around it, and what is summed in one place must equal
// what is summed in another.
VLLM_METAL_INLINE Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
VLLM_METAL_INLINE Floats fma(float a, Floats b, Floats c) { return fma(broadcast(a), b, c); }
// The second operand where either is a NaN, as the machine's own instruction.
VLLM_METAL_INLINE Floats max(Floats a, Floats b) { return a > b ? a : b; }
VLLM_METAL_INLINE Floats min(Floats a, Floats b) { return a < b ? a : b; }

// ---- Conversions of one register ----

// __builtin_convertvector does the same, but GCC 12 takes it to pieces on x86. (The masked forms of
// intrinsics, here and below: the plain ones draw a false warning from it.)
#if defined(__AVX512F__)
VLLM_METAL_INLINE Words widen(HalfWords values) {
  return (Words)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)values);
}
VLLM_METAL_INLINE Words widen(Bytes values) {
  return (Words)_mm512_maskz_cvtepu8_epi32(0xffff, (__m128i)values);
}
VLLM_METAL_INLINE HalfWords narrow(Words values) {
  return (HalfWords)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)values);
}
#else
#if defined(__AVX2__)
VLLM_METAL_INLINE Words widen(HalfWords values) {
  return (Words)_mm256_cvtepu16_epi32((__m128i)values);
}
VLLM_METAL_INLINE Words widen(Bytes values) {
  return (Words)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)values));
}
#else
VLLM_METAL_INLINE Words widen(HalfWords values) { return __builtin_convertvector(values, Words); }
VLLM_METAL_INLINE Words widen(Bytes values) { return __builtin_convertvector(values, Words); }
#endif
VLLM_METAL_INLINE HalfWords narrow(Words values) {
  return __builtin_convertvector(values, HalfWords);
}
#endif
// Exact for values below 2^24.
VLLM_METAL_INLINE Floats to_floats(Words values) {
  return __builtin_convertvector((Ints)values, Floats);
}

VLLM_METAL_INLINE Floats from_bfloat16(HalfWords bits) { return as_floats(widen(bits) << 16); }

// Rounds to nearest even. A NaN stays one: its upper half gets the quiet bit, so that dropping
// the lower half cannot turn it into infinity.
VLLM_METAL_INLINE HalfWords to_bfloat16(Floats values) {
#if defined(__AVX512BF16__)
  // Takes numbers below 2^-126 for zero.
  return (HalfWords)_mm512_maskz_cvtneps_pbh(0xffff, (__m512)values);
#else
  const Words bits = as_words(values);
  const Words rounded = (bits + (0x7fffu + ((bits >> 16) & 1u))) >> 16;
  const Words quiet_nan = (bits >> 16) | 0x40u;
  return narrow(values == values ? rounded : quiet_nan);
#endif
}

#if defined(__AVX512F__)
VLLM_METAL_INLINE Floats from_float16(HalfWords bits) {
  return (Floats)_mm512_maskz_cvtph_ps(0xffff, (__m256i)bits);
}
VLLM_METAL_INLINE HalfWords to_float16(Floats values) {
  return (HalfWords)_mm512_maskz_cvtps_ph(0xffff, (__m512)values, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__AVX2__) && defined(__F16C__)
VLLM_METAL_INLINE Floats from_float16(HalfWords bits) {
  return (Floats)_mm256_cvtph_ps((__m128i)bits);
}
VLLM_METAL_INLINE HalfWords to_float16(Floats values) {
  return (HalfWords)_mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__ARM_NEON) && defined(__aarch64__)
VLLM_METAL_INLINE Floats from_float16(HalfWords bits) {
  return (Floats)vcvt_f32_f16((float16x4_t)bits);
}
VLLM_METAL_INLINE HalfWords to_float16(Floats values) {
  return (HalfWords)vcvt_f16_f32((float32x4_t)values);
}
#else
// The exponent and mantissa, moved to their places in a float, are off by a factor of 2^112 only;
// the product is exact, also for subnormals. Infinity and NaN come out as 65536 and more.
VLLM_METAL_INLINE Floats from_float16(HalfWords bits) {
  const Words wide = widen(bits);
  const Floats magnitude = as_floats((wide & 0x7fffu) << 13) * 0x1p112f;
  const Words not_finite = as_words(magnitude >= 65536.0f) & 0x7f800000u;
  return as_floats(as_words(magnitude) | not_finite | ((wide & 0x8000u) << 16));
}

// Rounds to nearest even.
VLLM_METAL_INLINE HalfWords to_float16(Floats values) {
  const Words bits = as_words(values);
  const Words sign = (bits >> 16) & 0x8000u;
  const Words magnitude = bits & 0x7fffffffu;
  const Floats absolute = as_floats(magnitude);
  // Rebias the exponent by 127 - 15, round at bit 13.
  const Words normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 makes the unit of the last place 2^-24, that of a subnormal float16.
  const Words subnormal = as_words(absolute + 0.5f) - 0x3f000000u;
  const Words infinity = Words{} + 0x7c00u;
  const Words nan = ((magnitude >> 13) & 0x3ffu) | 0x7e00u;
  Words result = absolute < 0x1p-14f ? subnormal : normal;
  result = absolute >= 65520.0f ? infinity : result;
  result = values == values ? result : nan;
  return narrow(result | sign);
}
#endif

// ---- Memory: kLanes elements at any alignment, as float32 in registers ----

template <typename Vector>
VLLM_METAL_INLINE Vector load_bits(const void* source) {
  Vector vector;
  __builtin_memcpy(&vector, source, sizeof(Vector));
  return vector;
}

VLLM_METAL_INLINE Floats load(const float* source) { return load_bits<Floats>(source); }
VLLM_METAL_INLINE Floats load(const Float16* source) {
  return from_float16(load_bits<HalfWords>(source));
}
VLLM_METAL_INLINE Floats load(const Bfloat16* source) {
  return from_bfloat16(load_bits<HalfWords>(source));
}

VLLM_METAL_INLINE void store(float* target, Floats values) {
  __builtin_memcpy(target, &values, sizeof(values));
}
VLLM_METAL_INLINE void store(Float16* target, Floats values) {
  const HalfWords bits = to_float16(values);
  __builtin_memcpy(target, &bits, sizeof(bits));
}
VLLM_METAL_INLINE void store(Bfloat16* target, Floats values) {
  const HalfWords bits = to_bfloat16(values);
  __builtin_memcpy(target, &bits, sizeof(bits));
}

// The first `count` (0 to kLanes) elements; the other lanes are zero. Touches no other memory.
template <typename Vector, typename Element>
VLLM_METAL_INLINE Vector load_first_bits(const Element* source, size_t count) {
  static_assert(sizeof(Vector) == kLanes * sizeof(Element), "one element a lane");
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const uint32_t mask = (1u << count) - 1u;
  if constexpr (sizeof(Element) == 4) {
    return (Vector)_mm512_maskz_loadu_epi32((__mmask16)mask, source);
  } else {
    static_assert(sizeof(Element) == 2, "elements of 2 or 4 bytes");
    return (Vector)_mm256_maskz_loadu_epi16((__mmask16)mask, source);
  }
#else
  Element elements[kLanes] = {};
  __builtin_memcpy(elements, source, count * sizeof(Element));
  return load_bits<Vector>(elements);
#endif
}

VLLM_METAL_INLINE Floats load_first(const float* source, size_t count) {
  return load_first_bits<Floats>(source, count);
}
VLLM_METAL_INLINE Floats load_first(const Float16* source, size_t count) {
  return from_float16(load_first_bits<HalfWords>(source, count));
}
VLLM_METAL_INLINE Floats load_first(const Bfloat16* source, size_t count) {
  return from_bfloat16(load_first_bits<HalfWords>(source, count));
}

template <typename Element>
VLLM_METAL_INLINE void store_first(Element* target, Floats values, size_t count) {
  Element elements[kLanes];
  store(elements, values);
  __builtin_memcpy(target, elements, count * sizeof(Element));
}

// One element.
VLLM_METAL_INLINE float load_one(const Float16* source) {
  return from_float16(HalfWords{source->bits})[0];
}
VLLM_METAL_INLINE float load_one(const float* source) { return *source; }
VLLM_METAL_INLINE float load_one(const Bfloat16* source) {
  const uint32_t bits = (uint32_t)source->bits << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}
template <typename Element>
VLLM_METAL_INLINE void store_one(Element* target, float value) {
  store_first(target, broadcast(value), 1);
}

// ---- Across lanes, in a fixed order ----

// item(0, ...), item(1, ...), ...: one constant a lane, for shuffles.
#if VLLM_METAL_VECTOR_BYTES == 64
#define VLLM_METAL_EACH_LANE(item, ...)                                                         \
  item(0, __VA_ARGS__), item(1, __VA_ARGS__), item(2, __VA_ARGS__), item(3, __VA_ARGS__),       \
      item(4, __VA_ARGS__), item(5, __VA_ARGS__), item(6, __VA_ARGS__), item(7, __VA_ARGS__),   \
      item(8, __VA_ARGS__), item(9, __VA_ARGS__), item(10, __VA_ARGS__), item(11, __VA_ARGS__), \
      item(12, __VA_ARGS__), item(13, __VA_ARGS__), item(14, __VA_ARGS__), item(15, __VA_ARGS__)
#elif VLLM_METAL_VECTOR_BYTES == 32
#define VLLM_METAL_EACH_LANE(item, ...)                                                   \
  item(0, __VA_ARGS__), item(1, __VA_ARGS__), item(2, __VA_ARGS__), item(3, __VA_ARGS__), \
      item(4, __VA_ARGS__), item(5, __VA_ARGS__), item(6, __VA_ARGS__), item(7, __VA_ARGS__)
#else
#define VLLM_METAL_EACH_LANE(item, ...) \
  item(0, __VA_ARGS__), item(1, __VA_ARGS__), item(2, __VA_ARGS__), item(3, __VA_ARGS__)
#endif

// Swaps each lane with the one `Distance` (a power of two) away.
template <int Distance>
VLLM_METAL_INLINE Floats swap_lanes(Floats values) {
#define VLLM_METAL_PARTNER(lane, distance) ((lane) ^ (distance))
  return __builtin_shufflevector(values, values,
                                 VLLM_METAL_EACH_LANE(VLLM_METAL_PARTNER, Distance));
#undef VLLM_METAL_PARTNER
}

VLLM_METAL_INLINE float horizontal_sum(Floats values) {
  if constexpr (kLanes > 8) values = values + swap_lanes<8 % kLanes>(values);
  if constexpr (kLanes > 4) values = values + swap_lanes<4 % kLanes>(values);
  values = values + swap_lanes<2>(values);
  values = values + swap_lanes<1>(values);
  return values[0];
}

VLLM_METAL_INLINE float horizontal_max(Floats values) {
  if constexpr (kLanes > 8) values = max(values, swap_lanes<8 % kLanes>(values));
  if constexpr (kLanes > 4) values = max(values, swap_lanes<4 % kLanes>(values));
  values = max(values, swap_lanes<2>(values));
  values = max(values, swap_lanes<1>(values));
  return values[0];
}

#if defined(__AVX512BF16__)
// The first `count` elements, at most 2 * kLanes, as pairs, one a lane; others are zero.
VLLM_METAL_INLINE Words load_pairs(const Bfloat16* source, int64_t count) {
  if (count >= 2 * kLanes) return load_bits<Words>(source);
  return (Words)_mm512_maskz_loadu_epi16((1u << count) - 1u, source);
}
VLLM_METAL_INLINE void store_pairs(Bfloat16* target, int64_t count, Words pairs) {
  const uint32_t mask = count >= 2 * kLanes ? ~0u : (1u << count) - 1u;
  _mm512_mask_storeu_epi16(target, mask, (__m512i)pairs);
}

// Pairs of bfloat16, one a lane, times the one pair `x`, added to the sums. Exact but for the
// rounding of the sums.
VLLM_METAL_INLINE Floats add_pair_products(Words pairs, uint32_t x, Floats sums) {
  return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)pairs,
                                  (__m512bh)_mm512_set1_epi32((int)x));
}
#endif

// ---- Functions ----

// e^x within 2 units in the last place; 0 for -infinity, infinity above 88.72, NaN for NaN.
// e^x = 2^n * e^r with n = round(x / ln 2) and |r| <= ln 2 / 2; e^r by its Taylor polynomial
// of degree 7 (error below 2^-27).
VLLM_METAL_INLINE Floats exp(Floats x) {
  // Outside this range the result is 0 or infinity anyway; inside it, n fits two exponents.
  x = x > 89.0f ? broadcast(89.0f) : x;
  x = x < -104.0f ? broadcast(-104.0f) : x;
  // Adding 1.5 * 2^23 leaves the rounded value in the lowest bits of the sum.
  constexpr float kRounder = 0x1.8p23f;
  const Floats shifted = x * 1.44269504f + kRounder;
  const Floats n = shifted - kRounder;
  // ln 2 in two parts, the first with few enough bits that n times it is exact.
  Floats r = n * -0x1.62e4p-1f + x;
  r = n * -0x1.7f7d1cp-20f + r;
  Floats p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
#else
  // 2^n as a product of two powers: n may lie beyond the exponents of a normal float.
  const Ints exponent = (Ints)as_words(shifted) - (Ints)as_words(broadcast(kRounder));
  const Ints half = exponent >> 1;
  const Floats first = as_floats(as_words(half + 127) << 23);
  const Floats second = as_floats(as_words(exponent - half + 127) << 23);
  return p * first * second;
#endif
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
