// SPDX-License-Identifier: Apache-2.0
#include "files/gguf_blocks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

namespace vllm_metal {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

double half_to_double(uint16_t half) {
  int exponent = (half >> 10) & 31;
  int mantissa = half & 1023;
  double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}

uint16_t load_half(const std::byte* bytes) {
  return static_cast<uint16_t>(std::to_integer<int>(bytes[0]) | std::to_integer<int>(bytes[1])
                                                                    << 8);
}

// Element `i` of a block as GGML defines it.
double ggml_element(GgmlType type, const std::byte* block, int i) {
  double d = half_to_double(load_half(block));
  if (type == GgmlType::kQ8_0) {
    int q = std::to_integer<int>(block[2 + i]);
    return d * (q < 128 ? q : q - 256);
  }
  const std::byte* quants = block + (type == GgmlType::kQ4_0 ? 2 : 4);
  int q = (std::to_integer<int>(quants[i % 16]) >> (i < 16 ? 0 : 4)) & 15;
  return type == GgmlType::kQ4_0 ? d * (q - 8) : d * q + half_to_double(load_half(block + 2));
}

// Element `i` of a row as MLX defines it.
double mlx_element(const AffineRow& row, int bits, int i) {
  uint32_t word = row.weight[static_cast<size_t>(i * bits / 32)];
  uint32_t q = (word >> (i * bits % 32)) & ((1u << bits) - 1);
  auto group = static_cast<size_t>(i / kGgmlGroupSize);
  return half_to_double(row.scales[group]) * q + half_to_double(row.biases[group]);
}

struct OwnedRow {
  std::vector<uint32_t> weight;
  std::vector<uint16_t> scales, biases;
  AffineRow view() { return {weight, scales, biases}; }
};

OwnedRow repack(GgmlType type, const std::vector<std::byte>& blocks) {
  size_t groups = blocks.size() / bytes_per_block(type);
  auto words = groups * static_cast<size_t>(quantized_bits(type));
  OwnedRow row{std::vector<uint32_t>(words), std::vector<uint16_t>(groups),
               std::vector<uint16_t>(groups)};
  repack_row(type, blocks, row.view());
  return row;
}

void set_half(std::vector<std::byte>& blocks, size_t at, uint16_t value) {
  std::memcpy(blocks.data() + at, &value, sizeof(value));
}

class RepackTest : public ::testing::TestWithParam<GgmlType> {
 protected:
  // Random quants; scales run through every float16 whose bias is one, too.
  std::vector<std::byte> random_blocks(size_t count, uint16_t largest_scale) {
    std::mt19937 random(static_cast<uint32_t>(GetParam()));
    std::vector<std::byte> blocks(count * bytes_per_block(GetParam()));
    for (auto& byte : blocks) byte = static_cast<std::byte>(random() & 255);
    for (size_t i = 0; i < count; ++i) {
      size_t at = i * bytes_per_block(GetParam());
      auto scale = static_cast<uint16_t>(i % (largest_scale + 1u));
      set_half(blocks, at, static_cast<uint16_t>(scale | (random() & 0x8000)));
      if (GetParam() == GgmlType::kQ4_1) {
        auto minimum = static_cast<uint16_t>(random() % 0x7c00);
        set_half(blocks, at + 2, static_cast<uint16_t>(minimum | (random() & 0x8000)));
      }
    }
    return blocks;
  }

  uint16_t largest_scale() const {
    switch (GetParam()) {
      case GgmlType::kQ4_0:
        return 0x6fff;  // 8 times this is the largest float16
      case GgmlType::kQ8_0:
        return 0x5fff;  // 128 times
      default:
        return 0x7bff;
    }
  }
};

TEST_P(RepackTest, KeepsEveryElementExactly) {
  const size_t count = largest_scale() + 1u;
  auto blocks = random_blocks(count, largest_scale());
  OwnedRow row = repack(GetParam(), blocks);
  const int bits = quantized_bits(GetParam());
  for (size_t block = 0; block < count; ++block) {
    for (int i = 0; i < kGgmlGroupSize; ++i) {
      // Both sums are exact in double but for Q4_1, where they are the same operation.
      ASSERT_EQ(mlx_element(row.view(), bits, static_cast<int>(block) * kGgmlGroupSize + i),
                ggml_element(GetParam(), blocks.data() + block * bytes_per_block(GetParam()), i))
          << "block " << block << " element " << i;
    }
  }
}

TEST_P(RepackTest, RefusesScalesThatAreNotFinite) {
  for (uint16_t bad : {0x7c00, 0xfc00, 0x7e00}) {
    auto blocks = random_blocks(2, largest_scale());
    set_half(blocks, bytes_per_block(GetParam()), bad);
    EXPECT_THAT([&] { repack(GetParam(), blocks); },
                ThrowsMessage<std::invalid_argument>(HasSubstr("a scale is infinite")));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, RepackTest,
                         ::testing::Values(GgmlType::kQ4_0, GgmlType::kQ4_1, GgmlType::kQ8_0),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST(Repack, RefusesABiasBeyondFloat16) {
  std::vector<std::byte> q4(18), q8(34);
  set_half(q4, 0, 0x7000);  // 8192: times 8 is 65536
  EXPECT_THAT([&] { repack(GgmlType::kQ4_0, q4); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("times -8 it exceeds float16")));
  set_half(q8, 0, 0xe000);  // -512
  EXPECT_THAT([&] { repack(GgmlType::kQ8_0, q8); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("times -128 it exceeds float16")));
  std::vector<std::byte> q4_1(20);
  set_half(q4_1, 2, 0x7c00);
  EXPECT_THAT([&] { repack(GgmlType::kQ4_1, q4_1); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("a minimum is infinite")));
}

TEST(Repack, PacksLowBitsFirst) {
  std::vector<std::byte> blocks(18);
  set_half(blocks, 0, 0x3c00);
  for (int i = 0; i < 16; ++i)
    blocks[2 + static_cast<size_t>(i)] = static_cast<std::byte>(i | (15 - i) << 4);
  OwnedRow row = repack(GgmlType::kQ4_0, blocks);
  EXPECT_THAT(row.weight,
              ::testing::ElementsAre(0x76543210u, 0xfedcba98u, 0x89abcdefu, 0x01234567u));
  EXPECT_EQ(row.scales[0], 0x3c00);
  EXPECT_EQ(row.biases[0], 0xc800);  // -8
}

}  // namespace
}  // namespace vllm_metal
