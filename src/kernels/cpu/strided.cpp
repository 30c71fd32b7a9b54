// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/strided.h"

#include <cassert>
#include <cstring>

#include "common/mlx_buffer.h"

namespace vllm_metal::cpu {

bool has_contiguous_last_dimension(const mx::array& x) {
  return x.ndim() == 0 || x.shape(-1) <= 1 || x.strides().back() == 1;
}

bool has_even_rows(const mx::array& x) {
  if (!has_contiguous_last_dimension(x)) return false;
  // From the inside out: each leading dimension must step over all of those within it.
  int64_t expected = -1;
  for (int axis = static_cast<int>(x.ndim()) - 2; axis >= 0; --axis) {
    if (x.shape(axis) == 1) continue;
    const int64_t stride = x.strides()[axis];
    if (expected >= 0 && stride != expected) return false;
    expected = stride * x.shape(axis);
  }
  return true;
}

Rows rows_of(const mx::array& x) {
  const int64_t width = x.shape(-1);
  int64_t stride = width;
  for (int axis = 0; axis < static_cast<int>(x.ndim()) - 1; ++axis) {
    if (x.shape(axis) != 1) stride = x.strides()[axis];  // ends with that of the innermost
  }
  return {width == 0 ? 0 : static_cast<int64_t>(x.size()) / width, width, stride};
}

StridedCopy::StridedCopy(const mx::array& x, mx::array& copy)
    : source_(weak_handle(x)), target_(copy.data<char>()) {
  assert(x.ndim() > 0 && copy.shape() == x.shape() && copy.flags().row_contiguous);
}

void StridedCopy::operator()() const {
  if (source_.size() == 0) return;
  const mx::Shape& shape = source_.shape();
  const mx::Strides& strides = source_.strides();
  const auto item_size = static_cast<int64_t>(source_.itemsize());
  const int last = static_cast<int>(shape.size()) - 1;
  mx::Shape index(shape.size(), 0);
  const char* const first = source_.data<char>();
  char* target = target_;
  for (;;) {
    const char* source = first;
    for (int axis = 0; axis < last; ++axis) source += index[axis] * strides[axis] * item_size;
    for (int i = 0; i < shape[last]; ++i, target += item_size) {
      std::memcpy(target, source + i * strides[last] * item_size, item_size);
    }
    int axis = last - 1;  // next row: count up as an odometer
    while (axis >= 0 && ++index[axis] == shape[axis]) index[axis--] = 0;
    if (axis < 0) return;
  }
}

}  // namespace vllm_metal::cpu
