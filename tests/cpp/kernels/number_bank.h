// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "common/mlx_buffer.h"
#include "kernels/kernel_test.h"

namespace vllm_metal::testing_support {

// Random numbers as they are in a dtype, made once.
class NumberBank {
 public:
  static const NumberBank& of(mx::Dtype dtype) {
    static std::map<mx::Dtype::Val, NumberBank> banks;
    return banks.try_emplace(dtype.val(), dtype).first->second;
  }

  explicit NumberBank(mx::Dtype dtype)
      : numbers_(random_array({kSize}, dtype, 5)), values_(values_of(numbers_)) {}

  // A copy of the numbers from `first` on, cyclic.
  mx::array copy(const mx::Shape& shape, size_t first) const {
    mx::array result = uninitialized(shape, numbers_.dtype());
    const size_t item = numbers_.itemsize();
    for (size_t done = 0; done < result.size();) {
      const size_t from = (first + done) % kSize;
      const size_t count = std::min<size_t>(kSize - from, result.size() - done);
      std::memcpy(result.data<char>() + done * item, numbers_.data<char>() + from * item,
                  count * item);
      done += count;
    }
    return result;
  }
  double value(size_t index) const { return values_[index % kSize]; }

 private:
  static constexpr int kSize = 1'000'003;  // no multiple of any row's

  mx::array numbers_;
  std::vector<double> values_;
};

}  // namespace vllm_metal::testing_support
