// SPDX-License-Identifier: Apache-2.0
// Quantised matrices in strips of 16 rows, the order in which the kernels read them (see
// PackedMatrix):
//
//   strip         group            words of 32 columns of each of the 16 rows
//   | group 0 |   | words   |      | row 0, word 0 | row 1, word 0 | ... | row 15, word 0 |
//   | group 1 |   | scales  |      | row 0, word 1 | ...
//   |   ...   |   | biases  |
//
// A register holds the same word of as many rows as it has lanes, so that a value is a shift or a
// mask by a constant, sums never cross lanes, and memory is read from first to last.
#pragma once

#include "kernels/cpu/simd/linear_parts.h"
#include "kernels/cpu/simd/vector.h"
#include "kernels/cpu/simd/weight_rows.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

constexpr int kChunkColumns = 32;  // as many columns as words have bits: `Bits` whole words

constexpr int64_t scale_bytes(ElementType type) { return type == ElementType::kFloat32 ? 4 : 2; }

// Where things lie in a strip, in bytes.
struct StripLayout {
  explicit StripLayout(const WeightRows& weight)
      : scale_type(weight.type),
        chunk_bytes(int64_t{weight.bits} * kStripRows * 4),
        chunks_per_group(weight.group_size / kChunkColumns),
        scales_bytes(kStripRows * scale_bytes(weight.type)),
        group_bytes(chunks_per_group * chunk_bytes + 2 * scales_bytes),
        num_groups(weight.in_features / weight.group_size),
        strip_bytes(num_groups * group_bytes) {}

  ElementType scale_type;
  int64_t chunk_bytes;
  int64_t chunks_per_group;
  int64_t scales_bytes;
  int64_t group_bytes;
  int64_t num_groups;
  int64_t strip_bytes;
};

// Value `column` (0 to 31) of a chunk of words of `Bits` bits.
template <int Bits>
struct ValuePlace {
  constexpr explicit ValuePlace(int column) : word(column * Bits / 32), shift(column * Bits % 32) {}

  constexpr bool is_split() const { return shift + Bits > 32; }
  // Masked but not shifted down, a value is 2^shift times too large: exact as a float, as it has
  // `Bits` significant bits, and not negative while the sign bit is clear.
  constexpr bool stays_shifted() const { return shift + Bits < 32; }

  int word;
  int shift;
};

template <int Bits>
constexpr uint32_t kValueMask = (1u << Bits) - 1u;

// The value of each lane, as it is; `words` is that lane's first word of the chunk.
template <int Bits>
VLLM_METAL_INLINE Words value_of(const uint32_t* words, int column) {
  const ValuePlace<Bits> place(column);
  const Words low = load_bits<Words>(words + place.word * kStripRows) >> place.shift;
  if (place.shift + Bits == 32) return low;
  if (!place.is_split()) return low & kValueMask<Bits>;
  const Words high = load_bits<Words>(words + (place.word + 1) * kStripRows) << (32 - place.shift);
  return (low | high) & kValueMask<Bits>;
}

// The value times 2^shift where that saves work, see ValuePlace; the input is that much smaller.
template <int Bits>
VLLM_METAL_INLINE Floats scaled_value_of(const uint32_t* words, int column) {
  const ValuePlace<Bits> place(column);
  if (!place.stays_shifted()) return to_floats(value_of<Bits>(words, column));
  return to_floats(load_bits<Words>(words + place.word * kStripRows) &
                   (kValueMask<Bits> << place.shift));
}

template <int Bits>
constexpr float input_scale(int column) {
  const ValuePlace<Bits> place(column);
  return place.stays_shifted() ? 1.0f / (float)(1u << place.shift) : 1.0f;
}

// Calls f.template operator()<Bits>() with the number of bits that `bits` names.
template <typename Function>
VLLM_METAL_INLINE void with_bits(int bits, const Function& f) {
  switch (bits) {
    case 2:
      return f.template operator()<2>();
    case 3:
      return f.template operator()<3>();
    case 4:
      return f.template operator()<4>();
    case 5:
      return f.template operator()<5>();
    case 6:
      return f.template operator()<6>();
    case 8:
      return f.template operator()<8>();
  }
}

// One row, dequantised, to out [in_features].
inline void read_strip_row(const WeightRows& weight, int64_t row, float* out) {
  const StripLayout layout(weight);
  const int64_t lane = row % kStripRows;
  const char* group = (const char*)weight.elements + row / kStripRows * layout.strip_bytes;
  with_elements(weight.elements, weight.type, [&]<typename Scale>(const Scale*) {
    for (int64_t g = 0; g < layout.num_groups; ++g, group += layout.group_bytes) {
      const uint32_t* words = (const uint32_t*)group + lane;
      const Scale* scales =
          (const Scale*)(group + layout.chunks_per_group * layout.chunk_bytes) + lane;
      const float scale = load_one(scales), bias = load_one(scales + kStripRows);
      const uint32_t mask = (1u << weight.bits) - 1u;
      for (int64_t column = 0; column < weight.group_size; ++column) {
        const int64_t bit = column * weight.bits, word = bit / 32, shift = bit % 32;
        uint64_t value = words[word * kStripRows];
        if (shift + weight.bits > 32) value |= (uint64_t)words[(word + 1) * kStripRows] << 32;
        *out++ = scale * (float)((uint32_t)(value >> shift) & mask) + bias;
      }
    }
  });
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
