// SPDX-License-Identifier: Apache-2.0
#include "kernels/checks.h"

#include <stdexcept>

#include "common/text.h"

namespace vllm_metal {

void check_floating(const char* op, const char* name, const mx::array& x) {
  if (x.dtype() == mx::float32 || x.dtype() == mx::float16 || x.dtype() == mx::bfloat16) return;
  throw std::invalid_argument(
      text("[", op, "] ", name, " must be float32, float16 or bfloat16 but is ", x.dtype(), "."));
}

void check_same_dtype(const char* op, const char* name, const mx::array& x, const char* other_name,
                      const mx::array& other) {
  if (x.dtype() == other.dtype()) return;
  throw std::invalid_argument(text("[", op, "] ", name, " must have the dtype of ", other_name,
                                   ", ", other.dtype(), ", but is ", x.dtype(), "."));
}

void check_rank(const char* op, const char* name, const mx::array& x, int rank) {
  if (static_cast<int>(x.ndim()) == rank) return;
  throw std::invalid_argument(
      text("[", op, "] ", name, " must have ", rank, " dimensions but has shape ", x.shape(), "."));
}

void check_shape(const char* op, const char* name, const mx::array& x, const mx::Shape& shape) {
  if (x.shape() == shape) return;
  throw std::invalid_argument(
      text("[", op, "] ", name, " must have shape ", shape, " but has ", x.shape(), "."));
}

void check_caches(const char* op, const mx::array& keys, const mx::array& values) {
  if (keys.ndim() != 3 || values.shape() != keys.shape()) {
    throw std::invalid_argument(
        text("[", op, "] the key cache and the value cache must have one shape, (num_rows,",
             "num_kv_heads,head_dim), but have ", keys.shape(), " and ", values.shape(), "."));
  }
  check_same_dtype(op, "the value cache", values, "the key cache", keys);
}

}  // namespace vllm_metal
