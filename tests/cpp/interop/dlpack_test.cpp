// SPDX-License-Identifier: Apache-2.0
#include "interop/dlpack.h"
#include "support/error_of.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <numeric>
#include <optional>
#include <stdexcept>

namespace vllm_metal {
namespace {

using test::error_of;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

mx::array counting(const mx::Shape& shape, mx::Dtype dtype) {
  int size = 1;
  for (const int extent : shape) size *= extent;
  mx::array array = mx::astype(mx::reshape(mx::arange(size), shape), dtype, mx::Device::cpu);
  array.eval();
  return array;
}

mx::array evaluated(mx::array array) {
  array.eval();
  return array;
}

bool same_values(const mx::array& a, const mx::array& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         mx::array_equal(a, b, mx::Device::cpu).item<bool>();
}

// Memory of our own, as torch would hand it over, with a count of those who hold it.
struct Foreign {
  std::shared_ptr<std::vector<int32_t>> memory;
  TensorView view(std::vector<int64_t> shape, std::vector<int64_t> strides, int64_t first = 0) {
    return {memory->data() + first, mx::int32, std::move(shape), std::move(strides), memory};
  }
};

Foreign counting_memory(size_t size) {
  auto memory = std::make_shared<std::vector<int32_t>>(size);
  std::iota(memory->begin(), memory->end(), 0);
  return {std::move(memory)};
}

const std::pair<mx::Dtype, DlpackDtype> kDtypes[] = {
    {mx::bool_, {6, 8, 1}},    {mx::uint8, {1, 8, 1}},     {mx::uint16, {1, 16, 1}},
    {mx::uint32, {1, 32, 1}},  {mx::uint64, {1, 64, 1}},   {mx::int8, {0, 8, 1}},
    {mx::int16, {0, 16, 1}},   {mx::int32, {0, 32, 1}},    {mx::int64, {0, 64, 1}},
    {mx::float16, {2, 16, 1}}, {mx::bfloat16, {4, 16, 1}}, {mx::float32, {2, 32, 1}},
    {mx::float64, {2, 64, 1}}, {mx::complex64, {5, 64, 1}}};

TEST(Dlpack, DtypesAreThoseOfTheSpecification) {
  for (const auto& [mlx, dlpack] : kDtypes) {
    EXPECT_TRUE(dlpack_dtype(mlx) == dlpack) << name_of(mlx);
    EXPECT_EQ(mlx_dtype(dlpack), mlx) << name_of(mlx);
  }
  EXPECT_EQ(name_of(mx::bfloat16), "bfloat16");
  EXPECT_EQ(name_of(mx::bool_), "bool");
}

TEST(Dlpack, NamesDtypesThatMlxLacks) {
  EXPECT_THAT(error_of([] { mlx_dtype({5, 128, 1}); }),
              AllOf(HasSubstr("one of bool, uint8"), HasSubstr("but got complex128.")));
  EXPECT_THAT(error_of([] { mlx_dtype({10, 8, 1}); }), HasSubstr("but got float8_e4m3fn."));
  EXPECT_THAT(error_of([] { mlx_dtype({2, 32, 4}); }), HasSubstr("but got float32 of 4 lanes."));
  EXPECT_THAT(error_of([] { mlx_dtype({77, 3, 1}); }), HasSubstr("code 77 of 3 bits"));
}

TEST(Dlpack, ViewIsTheArraysMemoryAndOutlivesIt) {
  for (const auto& [dtype, unused] : kDtypes) {
    std::optional<mx::array> array = counting({3, 5}, dtype);
    const void* memory = array->data<void>();
    const TensorView view = view_of(*array);
    const mx::array copy = to_mlx(view);
    const mx::array expected = counting({3, 5}, dtype);
    EXPECT_EQ(view.data, memory);
    EXPECT_EQ(view.dtype, dtype);
    EXPECT_THAT(view.shape, ElementsAre(3, 5));
    EXPECT_THAT(view.strides, ElementsAre(5, 1));
    EXPECT_TRUE(same_values(copy, expected)) << name_of(dtype);
    array.reset();
    EXPECT_EQ(std::memcmp(view.data, expected.data<void>(), view.nbytes()), 0) << name_of(dtype);
    EXPECT_TRUE(same_values(to_mlx(view), expected)) << name_of(dtype);
  }
}

TEST(Dlpack, AViewHoldsTheMemoryForAsLongAsItIsThere) {
  mx::synchronize();
  const size_t before = mx::get_active_memory();
  std::optional<mx::array> array = to_mlx(counting_memory(1 << 18).view({1 << 18}, {1}));
  const size_t nbytes = array->nbytes();
  std::optional<TensorView> view = view_of(*array);
  std::optional<TensorView> second = *view;
  EXPECT_EQ(mx::get_active_memory(), before + nbytes);
  array.reset();
  view.reset();
  EXPECT_EQ(mx::get_active_memory(), before + nbytes);
  EXPECT_EQ(static_cast<const int32_t*>(second->data)[99'999], 99'999);
  second.reset();
  EXPECT_EQ(mx::get_active_memory(), before);
}

TEST(Dlpack, ViewsOfViewsStayInPlace) {
  const mx::array array = counting({4, 6}, mx::int16);
  const auto* memory = array.data<int16_t>();
  const TensorView transposed = view_of(evaluated(mx::transpose(array)));
  EXPECT_EQ(transposed.data, memory);
  EXPECT_THAT(transposed.strides, ElementsAre(1, 6));
  EXPECT_TRUE(same_values(to_mlx(transposed), mx::transpose(array)));
  const TensorView sliced = view_of(evaluated(mx::slice(array, {1, 5}, {4, 0}, mx::Shape{2, -2})));
  EXPECT_EQ(sliced.data, memory + 11);
  EXPECT_THAT(sliced.strides, ElementsAre(12, -2));
  const mx::array picked = to_mlx(sliced);
  EXPECT_TRUE(same_values(picked, mx::array({11, 9, 7, 23, 21, 19}, {2, 3}, mx::int16)));
  const TensorView broadcast =
      view_of(evaluated(mx::broadcast_to(mx::slice(array, {0, 0}, {1, 6}), {3, 6})));
  EXPECT_EQ(broadcast.data, memory);
  EXPECT_EQ(broadcast.strides[0], 0);
  EXPECT_TRUE(
      same_values(to_mlx(broadcast), mx::broadcast_to(counting({1, 6}, mx::int16), {3, 6})));
}

TEST(Dlpack, ArraysToBeComputedAreRefused) {
  const mx::array sum = counting({2}, mx::float32) + counting({2}, mx::float32);
  EXPECT_THAT(error_of([&] { view_of(sum); }), HasSubstr("must be evaluated"));
}

TEST(Dlpack, AnExportedArrayIsNotWrittenInPlace) {
  mx::array array = counting({1000}, mx::float32);
  const TensorView view = view_of(array);
  array = evaluated(array + mx::array(1.0f));  // MLX would reuse the memory of the only handle
  EXPECT_NE(array.data<void>(), view.data);
  EXPECT_TRUE(same_values(to_mlx(view), counting({1000}, mx::float32)));
}

TEST(Dlpack, StridesOfAnySignAreCopiedRowByRow) {
  Foreign foreign = counting_memory(24);
  // [2, 3, 4] seen with its last two dimensions exchanged, and from the last row to the first.
  const TensorView exchanged = foreign.view({2, 4, 3}, {12, 1, 4});
  const mx::array all = counting({2, 3, 4}, mx::int32);
  EXPECT_TRUE(same_values(to_mlx(exchanged), mx::swapaxes(all, 1, 2)));
  EXPECT_FALSE(exchanged.is_row_contiguous());
  const TensorView reversed = foreign.view({6, 4}, {-4, 1}, 20);
  const mx::array rows = to_mlx(reversed);
  EXPECT_EQ(rows.data<int32_t>()[0], 20);
  EXPECT_EQ(rows.data<int32_t>()[5], 17);
  EXPECT_EQ(rows.data<int32_t>()[23], 3);
  // Strides of dimensions with one element mean nothing.
  EXPECT_TRUE(foreign.view({1, 24}, {777, 1}).is_row_contiguous());
  EXPECT_TRUE(foreign.view({24, 1}, {1, -5}).is_row_contiguous());
}

TEST(Dlpack, EmptyTensorsAndScalars) {
  const TensorView empty{nullptr, mx::float16, {0, 7}, {7, 1}, nullptr};
  const mx::array array = to_mlx(empty);
  EXPECT_EQ(array.shape(), (mx::Shape{0, 7}));
  EXPECT_EQ(array.dtype(), mx::float16);
  EXPECT_EQ(view_of(array).size(), 0u);
  Foreign foreign = counting_memory(9);
  const mx::array scalar = to_mlx(foreign.view({}, {}, 8));
  EXPECT_EQ(scalar.ndim(), 0u);
  EXPECT_EQ(mx::array(scalar).item<int32_t>(), 8);
  EXPECT_TRUE(view_of(scalar).shape.empty());
}

TEST(Dlpack, TheOwnerMayGoFirst) {
  Foreign foreign = counting_memory(6);
  const std::weak_ptr<std::vector<int32_t>> watch = foreign.memory;
  std::optional<mx::array> array = to_mlx(foreign.view({2, 3}, {3, 1}));
  foreign.memory.reset();
  EXPECT_TRUE(same_values(*array, counting({2, 3}, mx::int32)));
  array.reset();
  EXPECT_TRUE(watch.expired());
}

TEST(Dlpack, WholePagesAreAdoptedOrCopiedAndLetGoOfOnce) {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t size = 2 * page / sizeof(int32_t);
  int released = 0;
  std::shared_ptr<void> memory(std::aligned_alloc(page, 2 * page), [&released](void* pages) {
    std::free(pages);
    ++released;
  });
  std::iota(static_cast<int32_t*>(memory.get()), static_cast<int32_t*>(memory.get()) + size, 0);
  TensorView view{memory.get(), mx::int32, {static_cast<int64_t>(size)}, {1}, memory};
  std::optional<mx::array> array = to_mlx(view);
  const bool adopted = array->data<void>() == view.data;
  EXPECT_TRUE(!adopted || mx::metal::is_available());
  memory.reset();
  view.owner.reset();
  EXPECT_EQ(released, adopted ? 0 : 1);
  EXPECT_TRUE(same_values(*array, counting({static_cast<int>(size)}, mx::int32)));
  array.reset();
  EXPECT_EQ(released, 1);
}

TEST(Dlpack, NamesShapesThatMlxCannotHave) {
  const TensorView view{nullptr, mx::uint8, {int64_t{1} << 31}, {0}, nullptr};
  EXPECT_THAT(error_of([&] { to_mlx(view); }),
              AllOf(HasSubstr("at most 2^31 - 1"), HasSubstr("[2147483648]")));
}

}  // namespace
}  // namespace vllm_metal
