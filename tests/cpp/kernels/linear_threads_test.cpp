// SPDX-License-Identifier: Apache-2.0
// Products come out the same, bit for bit, on one thread and on all, with weights of every form.
#include <gtest/gtest.h>

#include <tuple>

#include "kernels/linear_table.h"
#include "kernels/matmul_on_threads.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

class LinearThreads : public KernelTest,
                      public ::testing::WithParamInterface<std::tuple<cpu::Isa, int>> {
 protected:
  LinearThreads() { cpu::set_isa(std::get<0>(GetParam())); }
};

INSTANTIATE_TEST_SUITE_P(All, LinearThreads,
                         ::testing::Combine(::testing::ValuesIn(cpu::supported_isas()),
                                            ::testing::Values(0, 2, 3, 4, 5, 6, 8)),
                         name_of_isa_and_bits);

TEST_P(LinearThreads, ChangeNoBit) {
  Rotation rotation;
  for (const WeightFormat& format : formats_of(std::get<1>(GetParam()))) {
    const auto weight =
        make_weight(format, 700, rotation.next(widths_of(format)), Placement::kPlain);
    const cpu::WeightRows rows = weight.dense ? rows_of(*weight.dense) : rows_of(*weight.quantized);
    for (int num_tokens : {1, 3, 16, 17, 40}) {
      SCOPED_TRACE(
          text(testing_support::text_of(format), ", ", num_tokens, " x ", rows.in_features));
      const mx::array x = random_array({num_tokens, static_cast<int>(rows.in_features)},
                                       rotation.next(kDtypes), 60);
      ASSERT_EQ(product(rows, x, num_tokens, false), product(rows, x, num_tokens, true));
    }
  }
}

}  // namespace
}  // namespace vllm_metal
