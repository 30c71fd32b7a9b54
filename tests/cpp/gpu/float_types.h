// SPDX-License-Identifier: Apache-2.0
// half and bfloat of the Metal Shading Language: rounded to nearest, ties to even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace gpu_harness {

class half {
 public:
  half() = default;
  explicit half(float value) : bits_(round(value)) {}
  explicit operator float() const {
    const uint32_t sign = uint32_t{bits_ & 0x8000u} << 16;
    const uint32_t rest = bits_ & 0x7fffu;
    if (rest >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    // Scaling by 2^112 moves the exponent from bias 15 to bias 127, subnormal numbers included.
    const float magnitude = std::bit_cast<float>(rest << 13) * 0x1p112f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  uint16_t bits() const { return bits_; }
  static half of_bits(uint16_t bits) {
    half result;
    result.bits_ = bits;
    return result;
  }

 private:
  static uint16_t round(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
    const uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return sign | 0x7e00u;   // NaN
    if (rest >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more
    if (rest < 0x38800000u) {                        // subnormal: a multiple of 2^-24
      const float units = std::nearbyint(std::bit_cast<float>(rest) * 0x1p24f);
      return sign | static_cast<uint16_t>(units);
    }
    const uint32_t rounded = rest + 0xfffu + (rest >> 13 & 1u);
    return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
  }

  uint16_t bits_;
};

class bfloat {
 public:
  bfloat() = default;
  explicit bfloat(float value) : bits_(round(value)) {}
  explicit operator float() const { return std::bit_cast<float>(uint32_t{bits_} << 16); }
  uint16_t bits() const { return bits_; }

 private:
  static uint16_t round(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }

  uint16_t bits_;
};

}  // namespace gpu_harness
