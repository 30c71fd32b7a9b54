// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/strided.h"

#include <cassert>
#include <cstring>

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
    : source_(x.data<char>()),
      target_(copy.data<char>()),
      item_size_(static_cast<int64_t>(x.itemsize())),
      shape_(x.shape()),
      strides_(x.strides()) {
  assert(x.ndim() > 0 && copy.shape() == x.shape() && copy.flags().row_contiguous);
}

void StridedCopy::operator()() const {
  for (int extent : shape_)
    if (extent == 0) return;
  const int last = static_cast<int>(shape_.size()) - 1;
  mx::Shape index(shape_.size(), 0);
  char* target = target_;
  for (;;) {
    const char* source = source_;
    for (int axis = 0; axis < last; ++axis) source += index[axis] * strides_[axis] * item_size_;
    for (int i = 0; i < shape_[last]; ++i, target += item_size_) {
      std::memcpy(target, source + i * strides_[last] * item_size_, item_size_);
    }
    int axis = last - 1;  // next row: count up as an odometer
    while (axis >= 0 && ++index[axis] == shape_[axis]) index[axis--] = 0;
    if (axis < 0) return;
  }
}

}  // namespace vllm_metal::cpu
