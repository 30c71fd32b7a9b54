// SPDX-License-Identifier: Apache-2.0
// Rows of a weight matrix, in any of its forms, as float32.
#pragma once

#include "kernels/cpu/simd/linear.h"
#include "kernels/cpu/simd/vector.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

// Calls f(elements) with the pointer's true type, which `type` names.
template <typename Function>
VLLM_METAL_INLINE void with_elements(const void* elements, ElementType type, const Function& f) {
  switch (type) {
    case ElementType::kFloat32:
      return f((const float*)elements);
    case ElementType::kFloat16:
      return f((const Float16*)elements);
    case ElementType::kBfloat16:
      return f((const Bfloat16*)elements);
  }
}

// out[i] = float(source[i]).
template <typename Element>
inline void to_float32(const Element* source, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(source + i));
  if (i < count) store_first(out + i, load_first(source + i, count - i), count - i);
}

// target[i] = Element(values[i]).
template <typename Element>
inline void from_float32(const float* values, int64_t count, Element* target) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(target + i, load(values + i));
  if (i < count) store_first(target + i, load_first(values + i, count - i), count - i);
}

// kLanes values of 2 or 4 bits that begin at `packed`.
template <int Bits>
VLLM_METAL_INLINE Floats unpack_register(const uint8_t* packed) {
  constexpr int kPackedBytes = kLanes * Bits / 8;
  static_assert(kPackedBytes <= 8 && 32 % Bits == 0, "lanes that are parts of two words at most");
  uint64_t packed_bits = 0;
  __builtin_memcpy(&packed_bits, packed, kPackedBytes);
  typedef uint64_t Pairs __attribute__((vector_size(VLLM_METAL_VECTOR_BYTES)));
  Words words = (Words)(Pairs{} + packed_bits);
#define VLLM_METAL_WORD_OF(lane, bits) ((lane) * (bits) / 32)
#define VLLM_METAL_SHIFT_OF(lane, bits) ((lane) * (bits) % 32)
  words = __builtin_shufflevector(words, words, VLLM_METAL_EACH_LANE(VLLM_METAL_WORD_OF, Bits));
  const Words shifts = {VLLM_METAL_EACH_LANE(VLLM_METAL_SHIFT_OF, Bits)};
#undef VLLM_METAL_WORD_OF
#undef VLLM_METAL_SHIFT_OF
  return to_floats((words >> shifts) & ((1u << Bits) - 1u));
}
template <>
VLLM_METAL_INLINE Floats unpack_register<8>(const uint8_t* packed) {
  return to_floats(widen(load_bits<Bytes>(packed)));
}

// Values of 2, 4 or 8 bits, a register at a time.
template <int Bits>
inline void unpack_registers(const uint8_t* packed, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store(out + i, unpack_register<Bits>(packed + i * Bits / 8));
  }
  if (i < count) {
    uint8_t rest[kLanes] = {};
    __builtin_memcpy(rest, packed + i * Bits / 8, (count - i) * Bits / 8);
    store_first(out + i, unpack_register<Bits>(rest), count - i);
  }
}

// `Count` (3, 5 or 6) bytes, in two loads: copied to an integer in memory, they would have to be
// stored before they can be read as a whole.
template <int Count>
VLLM_METAL_INLINE uint64_t load_bytes(const uint8_t* source) {
  constexpr int kHead = Count < 4 ? 2 : 4;
  uint32_t head = 0, tail = 0;
  __builtin_memcpy(&head, source, kHead);
  __builtin_memcpy(&tail, source + kHead, Count - kHead);
  return head | (uint64_t)tail << (8 * kHead);
}

// Values of 3, 5 or 6 bits: eight of them are `Bits` whole bytes. A row has a multiple of eight,
// as it ends with a word.
template <int Bits>
inline void unpack_eights(const uint8_t* packed, int64_t count, float* out) {
  typedef uint32_t EightWords __attribute__((vector_size(32)));
  typedef int32_t EightInts __attribute__((vector_size(32)));
  typedef float EightFloats __attribute__((vector_size(32)));
  const EightWords shifts = {0, Bits, 2 * Bits, 3 * Bits, 0, Bits, 2 * Bits, 3 * Bits};
  for (int64_t i = 0; i < count; i += 8) {
    const uint64_t bits = load_bytes<Bits>(packed + i / 8 * Bits);
    const uint32_t low = (uint32_t)bits;  // four values in each half
    const uint32_t high = (uint32_t)(bits >> (4 * Bits));
    const EightWords halves = {low, low, low, low, high, high, high, high};
    const EightWords values = (halves >> shifts) & ((1u << Bits) - 1u);
    const EightFloats floats = __builtin_convertvector((EightInts)values, EightFloats);
    __builtin_memcpy(out + i, &floats, sizeof(floats));
  }
}

// `count` packed values, as floats. `packed` is where a multiple of eight values begins.
inline void unpack(const uint8_t* packed, int bits, int64_t count, float* out) {
  switch (bits) {
    case 2:
      return unpack_registers<2>(packed, count, out);
    case 3:
      return unpack_eights<3>(packed, count, out);
    case 4:
      return unpack_registers<4>(packed, count, out);
    case 5:
      return unpack_eights<5>(packed, count, out);
    case 6:
      return unpack_eights<6>(packed, count, out);
    case 8:
      return unpack_registers<8>(packed, count, out);
  }
}

// values[i] = scale * values[i] + bias.
VLLM_METAL_INLINE void scale_and_shift(float* values, int64_t count, float scale, float bias) {
  const Floats shift = broadcast(bias);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(values + i, fma(scale, load(values + i), shift));
  for (; i < count; ++i) values[i] = scale * values[i] + bias;
}

// Columns [begin, end) of a row, dequantised. `begin` is a multiple of eight.
inline void read_quantized(const WeightRows& weight, int64_t row, int64_t begin, int64_t end,
                           float* out) {
  const uint8_t* packed = (const uint8_t*)((const uint32_t*)weight.elements + row * weight.stride);
  unpack(packed + begin / 8 * weight.bits, weight.bits, end - begin, out);
  with_elements(weight.scales, weight.type, [&]<typename Element>(const Element* scales) {
    scales += row * weight.scales_stride;
    const Element* biases = (const Element*)weight.biases + row * weight.biases_stride;
    int64_t group = begin / weight.group_size;
    for (int64_t column = begin; column < end; ++group) {
      const int64_t group_end = (group + 1) * weight.group_size;
      const int64_t next = group_end < end ? group_end : end;
      scale_and_shift(out + (column - begin), next - column, load_one(scales + group),
                      load_one(biases + group));
      column = next;
    }
  });
}

// Columns [begin, end) of row `row`. `begin` is a multiple of eight.
inline void read_columns(const WeightRows& weight, int64_t row, int64_t begin, int64_t end,
                         float* out) {
  if (weight.bits != 0) return read_quantized(weight, row, begin, end, out);
  with_elements(weight.elements, weight.type, [&](const auto* elements) {
    to_float32(elements + row * weight.stride + begin, end - begin, out);
  });
}

// Adds the bias to `values`, features [begin, begin + count) of one token, and writes them to the
// result.
inline void write_features(const LinearOutput& output, int64_t out_features, int64_t token,
                           int64_t begin, int64_t count, float* values) {
  if (output.bias != nullptr) {
    with_elements(output.bias, output.bias_type, [&](const auto* bias) {
      bias += begin;
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) store(values + i, load(values + i) + load(bias + i));
      for (; i < count; ++i) values[i] += load_one(bias + i);
    });
  }
  with_elements(output.elements, output.type, [&]<typename Element>(const Element*) {
    from_float32(values, count, (Element*)output.elements + token * out_features + begin);
  });
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
