// SPDX-License-Identifier: Apache-2.0
// How the words of a chunk (strips.h) are multiplied with the input, step by step. Both ways are
// exact up to the rounding of float32 sums: the values of the words are small integers, and the
// scales come later.
#pragma once

#include "kernels/cpu/simd/strips.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

// The input of a chunk's columns.
constexpr int kChunkRegisters = kChunkColumns / kLanes;
typedef Floats ChunkInput[kChunkRegisters];

template <int Bits>
struct InputScales {
  constexpr InputScales() : values{} {
    for (int column = 0; column < kChunkColumns; ++column)
      values[column] = input_scale<Bits>(column);
  }
  float values[kChunkColumns];
};
template <int Bits>
constexpr InputScales<Bits> kInputScales;

// Register `i` of the input, as much smaller as scaled_value_of makes the weights larger.
template <int Bits>
VLLM_METAL_INLINE Floats scaled(const ChunkInput& x, int i) {
  return x[i] * load(kInputScales<Bits>.values + i * kLanes);
}

// A column a step, in float32.
template <int Bits>
struct FloatSteps {
  typedef float Input;
  typedef Floats Weights;
  static constexpr int kSteps = kChunkColumns;

  static VLLM_METAL_INLINE Weights weights(const uint32_t* words, int step) {
    return scaled_value_of<Bits>(words, step);
  }
  static VLLM_METAL_INLINE Floats multiply_add(Input x, Weights weights, Floats sum) {
    return fma(x, weights, sum);
  }

  static VLLM_METAL_INLINE void pack(const ChunkInput& x, Input* packed) {
    VLLM_METAL_UNROLL
    for (int i = 0; i < kChunkRegisters; ++i) store(packed + i * kLanes, scaled<Bits>(x, i));
  }
};

#if defined(__AVX512BF16__)

// The integers 0 to 3 and 0 to 15 as bfloat16, over and over.
#define VLLM_METAL_0_TO_3 0x0000, 0x3f80, 0x4000, 0x4040
#define VLLM_METAL_0_TO_15                                                                   \
  VLLM_METAL_0_TO_3, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, \
      0x4150, 0x4160, 0x4170
alignas(64) constexpr uint16_t kBfloat16Of2Bits[32] = {
    VLLM_METAL_0_TO_3, VLLM_METAL_0_TO_3, VLLM_METAL_0_TO_3, VLLM_METAL_0_TO_3,
    VLLM_METAL_0_TO_3, VLLM_METAL_0_TO_3, VLLM_METAL_0_TO_3, VLLM_METAL_0_TO_3};
alignas(64) constexpr uint16_t kBfloat16Of4Bits[32] = {VLLM_METAL_0_TO_15, VLLM_METAL_0_TO_15};
#undef VLLM_METAL_0_TO_15
#undef VLLM_METAL_0_TO_3

// Two columns a step, by the processor's products of bfloat16; for input of that type. An integer
// up to 8 bits is a bfloat16, and so is its product with a power of two.
template <int Bits>
struct PairSteps {
  typedef uint32_t Input;  // the earlier column in the lower half
  typedef Words Weights;   // likewise
  static constexpr int kSteps = kChunkColumns / 2;

  // Words of 2 and 4 bits are turned to pairs by a table: shifted down, each half of a word begins
  // with the value it is looked up by, and what follows of its five bits makes no difference.
  static constexpr bool kIsLookedUp = Bits == 2 || Bits == 4;
  static constexpr int kStepsPerWord = 16 / Bits;

  static constexpr int first_column(int step) {
    if (!kIsLookedUp) return step;
    return step / kStepsPerWord * 2 * kStepsPerWord + step % kStepsPerWord;
  }
  static constexpr int second_column(int step) {
    return first_column(step) + (kIsLookedUp ? kStepsPerWord : kSteps);
  }

  static VLLM_METAL_INLINE Weights weights(const uint32_t* words, int step) {
    if constexpr (kIsLookedUp) {
      const Words bits = load_bits<Words>(words + step / kStepsPerWord * kStripRows) >>
                         (step % kStepsPerWord * Bits);
      return (Words)_mm512_maskz_permutexvar_epi16(0xffffffffu, (__m512i)bits, table());
    } else {
      const Words first = as_words(scaled_value_of<Bits>(words, first_column(step)));
      const Words second = as_words(scaled_value_of<Bits>(words, second_column(step)));
      return (first >> 16) | second;
    }
  }

  static VLLM_METAL_INLINE Floats multiply_add(Input x, Weights weights, Floats sum) {
    return add_pair_products(weights, x, sum);
  }

  static VLLM_METAL_INLINE void pack(const ChunkInput& x, Input* packed) {
    static_assert(kSteps == kLanes && kChunkRegisters == 2, "a register of pairs");
    const Floats low = kIsLookedUp ? x[0] : scaled<Bits>(x, 0);
    const Floats high = kIsLookedUp ? x[1] : scaled<Bits>(x, 1);
#define VLLM_METAL_FIRST_COLUMN(step, bits) PairSteps<bits>::first_column(step)
#define VLLM_METAL_SECOND_COLUMN(step, bits) PairSteps<bits>::second_column(step)
    const Floats first =
        __builtin_shufflevector(low, high, VLLM_METAL_EACH_LANE(VLLM_METAL_FIRST_COLUMN, Bits));
    const Floats second =
        __builtin_shufflevector(low, high, VLLM_METAL_EACH_LANE(VLLM_METAL_SECOND_COLUMN, Bits));
#undef VLLM_METAL_FIRST_COLUMN
#undef VLLM_METAL_SECOND_COLUMN
    const Words pairs = (as_words(first) >> 16) | (as_words(second) & 0xffff0000u);
    __builtin_memcpy(packed, &pairs, sizeof(pairs));
  }

 private:
  static VLLM_METAL_INLINE __m512i table() {
    return load_bits<__m512i>(Bits == 2 ? kBfloat16Of2Bits : kBfloat16Of4Bits);
  }
};

#endif

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
