// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/mlx.h"

namespace vllm_metal::cpu {

// Rows of an array's last dimension, all leading dimensions taken as one.
struct Rows {
  int64_t count;
  int64_t width;   // elements of a row, contiguous
  int64_t stride;  // elements from one row to the next
};

// Whether `x` can be read as Rows where it lies, and those rows.
bool has_even_rows(const mx::array& x);
Rows rows_of(const mx::array& x);

bool has_contiguous_last_dimension(const mx::array& x);

// A function that copies `x`, of any strides, into the row-contiguous `copy`; run it when x is
// computed. Both must outlive it.
struct StridedCopy {
  StridedCopy(const mx::array& x, mx::array& copy);
  void operator()() const;

 private:
  mx::array source_;  // a weak handle
  char* target_;
};

}  // namespace vllm_metal::cpu
