// SPDX-License-Identifier: Apache-2.0
#include "files/gguf_blocks.h"

#include <cassert>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "common/text.h"

namespace vllm_metal {

namespace {

constexpr size_t kWordsOf4Bits = kGgmlGroupSize * 4 / 32;
constexpr size_t kWordsOf8Bits = kGgmlGroupSize * 8 / 32;

// float16: sign, 5 bits of exponent, 10 of mantissa.
constexpr uint16_t kSign = 0x8000;
constexpr uint16_t kExponent = 0x7c00;
constexpr uint16_t kMantissa = 0x03ff;
constexpr uint16_t kExponentStep = 0x0400;

uint16_t load_half(const std::byte* bytes) {
  uint16_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

bool is_finite(uint16_t half) { return (half & kExponent) != kExponent; }

// 2^power * half. Exact, or an infinity where float16 ends.
uint16_t times_power_of_two(uint16_t half, int power) {
  uint16_t sign = half & kSign;
  uint16_t magnitude = half & ~kSign;
  for (; power > 0; --power) {
    if (magnitude <= kMantissa) {
      magnitude = static_cast<uint16_t>(magnitude << 1);  // a subnormal, or its step to normal
    } else {
      magnitude += kExponentStep;
    }
    if (magnitude >= kExponent) return sign | kExponent;
  }
  return sign | magnitude;
}

// -2^power * half.
uint16_t negative_multiple(uint16_t half, int power) {
  uint16_t result = times_power_of_two(half ^ kSign, power);
  if (!is_finite(result)) {
    throw std::invalid_argument(
        text("a scale has the float16 bits ", half, "; times ", -(1 << power),
             " it exceeds float16, so that this block cannot be represented."));
  }
  return result;
}

void check_finite(uint16_t half, const char* what) {
  if (!is_finite(half)) throw std::invalid_argument(text(what, " is infinite or not a number."));
}

// GGML keeps element i in the low half of byte i and element i + 16 in the high half.
void pack_nibbles(const std::byte* quants, uint32_t* words) {
  for (size_t word = 0; word < kWordsOf4Bits; ++word) {
    // Words 0 and 1 hold elements 0 to 15, the low halves; 2 and 3 the high halves.
    const std::byte* bytes = quants + (word % 2) * 8;
    int shift = word < 2 ? 0 : 4;
    uint32_t packed = 0;
    for (int i = 0; i < 8; ++i) {
      packed |= ((std::to_integer<uint32_t>(bytes[i]) >> shift) & 15u) << (4 * i);
    }
    words[word] = packed;
  }
}

// Flipping the sign bit turns a signed byte q into the unsigned q + 128.
void pack_bytes(const std::byte* quants, uint32_t* words) {
  for (size_t word = 0; word < kWordsOf8Bits; ++word) {
    uint32_t packed = 0;
    for (int i = 0; i < 4; ++i)
      packed |= std::to_integer<uint32_t>(quants[word * 4 + i]) << (8 * i);
    words[word] = packed ^ 0x80808080u;
  }
}

void repack_block(GgmlType type, const std::byte* block, uint32_t* words, uint16_t& scale,
                  uint16_t& bias) {
  scale = load_half(block);
  check_finite(scale, "a scale");
  if (type == GgmlType::kQ4_0) {
    bias = negative_multiple(scale, 3);
    pack_nibbles(block + 2, words);
  } else if (type == GgmlType::kQ4_1) {
    bias = load_half(block + 2);
    check_finite(bias, "a minimum");
    pack_nibbles(block + 4, words);
  } else {
    bias = negative_multiple(scale, 7);
    pack_bytes(block + 2, words);
  }
}

}  // namespace

int quantized_bits(GgmlType type) {
  switch (type) {
    case GgmlType::kQ4_0:
    case GgmlType::kQ4_1:
      return 4;
    case GgmlType::kQ8_0:
      return 8;
    default:
      return 0;
  }
}

void repack_row(GgmlType type, std::span<const std::byte> blocks, const AffineRow& row) {
  assert(quantized_bits(type) != 0);
  const size_t block_bytes = bytes_per_block(type);
  const size_t words = quantized_bits(type) == 4 ? kWordsOf4Bits : kWordsOf8Bits;
  assert(blocks.size() == row.scales.size() * block_bytes);
  assert(row.biases.size() == row.scales.size() && row.weight.size() == row.scales.size() * words);
  for (size_t group = 0; group < row.scales.size(); ++group) {
    repack_block(type, blocks.data() + group * block_bytes, row.weight.data() + group * words,
                 row.scales[group], row.biases[group]);
  }
}

}  // namespace vllm_metal
