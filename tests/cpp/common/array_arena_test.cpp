// SPDX-License-Identifier: Apache-2.0
#include "common/array_arena.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <optional>
#include <vector>

#include "common/mlx_buffer.h"

namespace vllm_metal {
namespace {

constexpr size_t kAlignment = 128;

// 0, 1, 2, ... in that shape, evaluated.
mx::array counting(const mx::Shape& shape, mx::Dtype dtype) {
  int size = 1;
  for (int extent : shape) size *= extent;
  mx::array array = mx::astype(mx::reshape(mx::arange(0, size, mx::int32), shape), dtype);
  array.eval();
  return array;
}

uintptr_t address(const mx::array& array) {
  return reinterpret_cast<uintptr_t>(array.data<void>());
}

bool is_equal(const mx::array& a, const mx::array& b) { return mx::array_equal(a, b).item<bool>(); }

TEST(ArrayArena, CopiesLieSideBySide) {
  ArrayArena arena(4096);
  const mx::array bytes = counting({100}, mx::uint8), floats = counting({5, 12}, mx::float32);
  const mx::array first = arena.copy(bytes), second = arena.copy(floats);
  EXPECT_TRUE(is_equal(first, bytes));
  EXPECT_TRUE(is_equal(second, floats));
  EXPECT_EQ(second.shape(), floats.shape());
  EXPECT_EQ(second.dtype(), mx::float32);
  EXPECT_TRUE(second.flags().row_contiguous);
  EXPECT_EQ(address(second) - address(first), kAlignment);
}

TEST(ArrayArena, CopiesAreOfUseInOps) {
  ArrayArena arena(4096);
  const mx::array matrix = arena.copy(counting({2, 3}, mx::float32));
  const mx::array product = mx::matmul(mx::transpose(matrix), matrix);
  const std::vector<float> expected = {9, 12, 15, 12, 17, 22, 15, 22, 29};
  EXPECT_TRUE(is_equal(product, mx::array(expected.begin(), {3, 3})));
  EXPECT_TRUE(is_equal(matrix, counting({2, 3}, mx::float32)));  // not written over
}

TEST(ArrayArena, WhatDoesNotFitGetsABlockOfItsOwn) {
  ArrayArena arena(2 * kAlignment);
  const mx::array small = counting({100}, mx::uint8), large = counting({5000}, mx::uint8);
  const mx::array first = arena.copy(small), second = arena.copy(large), third = arena.copy(small);
  EXPECT_TRUE(is_equal(first, small));
  EXPECT_TRUE(is_equal(second, large));
  EXPECT_TRUE(is_equal(third, small));
}

TEST(ArrayArena, CopiesOutliveTheArenaAndEachOther) {
  const mx::array expected = counting({1000}, mx::int32);
  std::optional<mx::array> last;
  {
    ArrayArena arena(10000);
    const mx::array first = arena.copy(counting({10}, mx::int32));
    last = arena.copy(expected);
  }
  EXPECT_TRUE(is_equal(*last, expected));
}

TEST(ArrayArena, BlocksAreGivenBackWithTheLastCopy) {
  const size_t before = memory_use().active;
  {
    ArrayArena arena(1 << 20);
    const mx::array one = arena.copy(counting({1000}, mx::int32));
    EXPECT_EQ(memory_use().active, before + (1u << 20));
  }
  EXPECT_EQ(memory_use().active, before);
}

TEST(ArrayArena, EmptyArraysAreFine) {
  ArrayArena arena(0);
  const mx::array empty = arena.copy(counting({0, 4}, mx::float32));
  EXPECT_EQ(empty.shape(), (mx::Shape{0, 4}));
  EXPECT_TRUE(is_equal(arena.copy(counting({4}, mx::int32)), counting({4}, mx::int32)));
}

}  // namespace
}  // namespace vllm_metal
