// SPDX-License-Identifier: Apache-2.0
#include "interop/dlpack.h"

#include <unistd.h>

#include <cstring>
#include <limits>
#include <stdexcept>

#include "common/mlx_buffer.h"
#include "common/text.h"

namespace vllm_metal {

namespace {

// DLDataTypeCode.
constexpr uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6;

struct DtypeRow {
  mx::Dtype mlx;
  DlpackDtype dlpack;
  const char* name;
};

const DtypeRow kDtypes[] = {
    {mx::bool_, {kBool, 8, 1}, "bool"},           {mx::uint8, {kUInt, 8, 1}, "uint8"},
    {mx::uint16, {kUInt, 16, 1}, "uint16"},       {mx::uint32, {kUInt, 32, 1}, "uint32"},
    {mx::uint64, {kUInt, 64, 1}, "uint64"},       {mx::int8, {kInt, 8, 1}, "int8"},
    {mx::int16, {kInt, 16, 1}, "int16"},          {mx::int32, {kInt, 32, 1}, "int32"},
    {mx::int64, {kInt, 64, 1}, "int64"},          {mx::float16, {kFloat, 16, 1}, "float16"},
    {mx::bfloat16, {kBfloat, 16, 1}, "bfloat16"}, {mx::float32, {kFloat, 32, 1}, "float32"},
    {mx::float64, {kFloat, 64, 1}, "float64"},    {mx::complex64, {kComplex, 64, 1}, "complex64"},
};

const DtypeRow& row_of(mx::Dtype dtype) {
  for (const DtypeRow& row : kDtypes)
    if (row.mlx == dtype) return row;
  throw std::invalid_argument("[interop] unknown dtype.");
}

// The names of all codes that DLPack 1.1 has; what it adds later is a number.
std::string name_of_unsupported(DlpackDtype dtype) {
  static constexpr const char* kNames[] = {"int",
                                           "uint",
                                           "float",
                                           "opaque",
                                           "bfloat",
                                           "complex",
                                           "bool",
                                           "float8_e3m4",
                                           "float8_e4m3",
                                           "float8_e4m3b11fnuz",
                                           "float8_e4m3fn",
                                           "float8_e4m3fnuz",
                                           "float8_e5m2",
                                           "float8_e5m2fnuz",
                                           "float8_e8m0fnu",
                                           "float6_e2m3fn",
                                           "float6_e3m2fn",
                                           "float4_e2m1fn"};
  if (dtype.code >= std::size(kNames))
    return text("DLPack's code ", int{dtype.code}, " of ", int{dtype.bits}, " bits");
  std::string name = kNames[dtype.code];
  if (dtype.code <= kComplex) name += std::to_string(dtype.bits);
  if (dtype.lanes != 1) name += text(" of ", dtype.lanes, " lanes");
  return name;
}

// How a tensor falls into runs of elements that lie side by side.
struct Runs {
  size_t dimensions;  // the outer ones, which number the runs
  size_t bytes;       // of a run
};

Runs runs_of(const TensorView& view) {
  const size_t item = mx::size_of(view.dtype);
  Runs runs{view.shape.size(), item};
  int64_t elements = 1;
  for (; runs.dimensions > 0; --runs.dimensions) {
    const int64_t extent = view.shape[runs.dimensions - 1];
    if (extent != 1 && view.strides[runs.dimensions - 1] != elements) break;
    elements *= extent;
  }
  runs.bytes = static_cast<size_t>(elements) * item;
  return runs;
}

// Returns the end of what it wrote.
std::byte* copy_runs(const TensorView& view, const Runs& runs, size_t dimension,
                     const std::byte* source, std::byte* destination) {
  if (dimension == runs.dimensions) {
    std::memcpy(destination, source, runs.bytes);
    return destination + runs.bytes;
  }
  const auto step = view.strides[dimension] * static_cast<int64_t>(mx::size_of(view.dtype));
  for (int64_t i = 0; i < view.shape[dimension]; ++i)
    destination = copy_runs(view, runs, dimension + 1, source + i * step, destination);
  return destination;
}

mx::Shape mlx_shape(const std::vector<int64_t>& shape) {
  mx::Shape result;
  for (const int64_t extent : shape) {
    if (extent > std::numeric_limits<int32_t>::max())
      throw std::invalid_argument(
          text("[interop] extents must be at most 2^31 - 1 but got [", join(shape), "]."));
    result.push_back(static_cast<int32_t>(extent));
  }
  return result;
}

// What Metal asks of memory that it did not allocate.
bool is_whole_pages(const TensorView& view) {
  static const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return reinterpret_cast<uintptr_t>(view.data) % page == 0 && view.nbytes() % page == 0;
}

}  // namespace

DlpackDtype dlpack_dtype(mx::Dtype dtype) { return row_of(dtype).dlpack; }

mx::Dtype mlx_dtype(DlpackDtype dtype) {
  std::vector<const char*> names;
  for (const DtypeRow& row : kDtypes) {
    if (row.dlpack == dtype) return row.mlx;
    names.push_back(row.name);
  }
  throw std::invalid_argument(text("[interop] dtype must be one of ", join(names), " but got ",
                                   name_of_unsupported(dtype), "."));
}

std::string name_of(mx::Dtype dtype) { return row_of(dtype).name; }

size_t TensorView::size() const {
  size_t elements = 1;
  for (const int64_t extent : shape) elements *= static_cast<size_t>(extent);
  return elements;
}

bool TensorView::is_row_contiguous() const { return size() == 0 || runs_of(*this).dimensions == 0; }

TensorView view_of(const mx::array& array) {
  if (array.status() == mx::array::Status::unscheduled || !array.is_available())
    throw std::invalid_argument("[interop] the array must be evaluated.");
  auto owner = std::make_shared<const mx::array>(array);
  return {.data = mx::array(array).data<void>(),
          .dtype = array.dtype(),
          .shape = {array.shape().begin(), array.shape().end()},
          .strides = {array.strides().begin(), array.strides().end()},
          .owner = std::move(owner)};
}

void copy_row_major(const TensorView& view, std::byte* destination) {
  if (view.size() == 0) return;
  copy_runs(view, runs_of(view), 0, static_cast<const std::byte*>(view.data), destination);
}

mx::array to_mlx(const TensorView& view) {
  const mx::Shape shape = mlx_shape(view.shape);
  if (view.size() > 0 && view.is_row_contiguous() && is_whole_pages(view))
    // MLX copies by itself where the device cannot adopt; never writes into what it adopted.
    return mx::array(view.data, shape, view.dtype, [owner = view.owner](void*) {});
  mx::array array = uninitialized(shape, view.dtype);
  copy_row_major(view, array.data<std::byte>());
  return array;
}

}  // namespace vllm_metal
