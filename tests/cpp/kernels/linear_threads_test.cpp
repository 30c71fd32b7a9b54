// SPDX-License-Identifier: Apache-2.0
// Products come out the same, bit for bit, on one thread and on all, with weights of every form.
#include <gtest/gtest.h>

#include <tuple>
#include <vector>

#include "kernels/cpu/cpu_primitive.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/parallel_for.h"
#include "kernels/linear_table.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

cpu::WeightRows rows_of(const TableWeight& weight) {
  if (weight.dense) {
    mx::array elements = *weight.dense;
    mx::eval(elements);
    return {.out_features = elements.shape(0),
            .in_features = elements.shape(1),
            .elements = elements.data<void>(),
            .stride = elements.shape(1),
            .type = cpu::element_type_of(elements.dtype())};
  }
  QuantizedMatrix matrix = *weight.quantized;
  mx::eval(matrix.weight, matrix.scales, matrix.biases);
  return {.out_features = matrix.out_features(),
          .in_features = matrix.in_features(),
          .elements = matrix.weight.data<void>(),
          .stride = matrix.weight.shape(1),
          .type = cpu::element_type_of(matrix.scales.dtype()),
          .bits = matrix.bits,
          .group_size = matrix.group_size,
          .scales = matrix.scales.data<void>(),
          .scales_stride = matrix.scales.shape(1),
          .biases = matrix.biases.data<void>(),
          .biases_stride = matrix.biases.shape(1)};
}

std::vector<float> product(const cpu::WeightRows& weight, const mx::array& x, bool on_one_thread) {
  std::vector<float> y(static_cast<size_t>(x.shape(0)) * weight.out_features);
  const cpu::Matmul matmul(weight,
                           {.elements = x.data<void>(),
                            .type = cpu::element_type_of(x.dtype()),
                            .num_tokens = x.shape(0),
                            .stride = x.shape(1)},
                           {.elements = y.data(),
                            .type = cpu::ElementType::kFloat32,
                            .bias = nullptr,
                            .bias_type = cpu::ElementType::kFloat32});
  std::vector<float> workspace(matmul.workspace_floats());
  if (!on_one_thread) {
    matmul.run(workspace.data());
    return y;
  }
  cpu::parallel_for(2, 1, [&](int64_t begin, int64_t) {  // inside a body all calls are inline
    if (begin == 0) matmul.run(workspace.data());
  });
  return y;
}

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
    const cpu::WeightRows rows = rows_of(weight);
    for (int num_tokens : {1, 3, 16, 17, 40}) {
      SCOPED_TRACE(
          text(testing_support::text_of(format), ", ", num_tokens, " x ", rows.in_features));
      const mx::array x = random_array({num_tokens, static_cast<int>(rows.in_features)},
                                       rotation.next(kDtypes), 60);
      ASSERT_EQ(product(rows, x, false), product(rows, x, true));
    }
  }
}

}  // namespace
}  // namespace vllm_metal
