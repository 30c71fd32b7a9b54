// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cmath>

#include "common/text.h"
#include "kernels/gpu/add_rms_norm.h"
#include "kernels/linear.h"
#include "kernels/packed_linear.h"
#include "kernels/rms_norm.h"
#include "kernels/silu_and_mul.h"
#include "kernels/split_rotary.h"
#include "selftest/op_case.h"
#include "selftest/quantized_inputs.h"
#include "selftest/rotary_angles.h"

namespace vllm_metal::selftest {

namespace {

constexpr float kEps = 1e-5f;
constexpr int kInFeatures = 576, kOutFeatures = 200, kGroupSize = 64;
constexpr std::array kTokenCounts = {1, 5, 33};  // streamed, in tiles, in blocks

void add_elementwise(std::vector<OpCase>& cases) {
  cases.push_back({"rms_norm", Exactness::kRounded, nullptr, [](const Numbers& numbers) {
                     return std::vector{
                         rms_norm(numbers({33, 576}, 1, 3.0f), numbers({576}, 2), kEps)};
                   }});
  // One dtype sums before it normalises, so the sum in float32 is rounded as the op rounds it.
  cases.push_back(
      {"add_rms_norm", Exactness::kRounded, gpu::has_norm_kernel, [](const Numbers& numbers) {
         const auto x = numbers({33, 576}, 3), residual = numbers({33, 576}, 4, 4.0f);
         const auto weight = numbers({576}, 5);
         const auto sum = numbers.hold(mx::astype(x + residual, numbers.rounded_to));
         if (numbers.held_in != numbers.rounded_to)
           return std::vector{sum, rms_norm(sum, weight, kEps)};
         const auto result = add_rms_norm(x, residual, weight, kEps);
         return std::vector{result.first, result.second};
       }});
  cases.push_back({"silu_and_mul", Exactness::kRounded, nullptr, [](const Numbers& numbers) {
                     return std::vector{silu_and_mul(numbers({33, 2 * 384}, 6, 2.0f))};
                   }});
  cases.push_back({"split_rotary", Exactness::kRounded, nullptr, [](const Numbers& numbers) {
                     const HeadCounts heads{9, 3, 64};
                     const auto result = split_rotary(numbers({33, 15 * 64}, 7),
                                                      rotary_angles(33, 64, 1000), heads);
                     return std::vector{result.queries, result.keys, result.values};
                   }});
}

void add_dense(std::vector<OpCase>& cases) {
  for (int num_tokens : kTokenCounts)
    cases.push_back({text("linear/", num_tokens, "_tokens"), Exactness::kProduct, nullptr,
                     [num_tokens](const Numbers& numbers) {
                       const float deviation = 1 / std::sqrt(static_cast<float>(kInFeatures));
                       return std::vector{linear(numbers({num_tokens, kInFeatures}, 8),
                                                 numbers({kOutFeatures, kInFeatures}, 9, deviation),
                                                 numbers({kOutFeatures}, 10))};
                     }});
}

// Products of rows of about length one, whatever the bits.
QuantizedMatrix quantized_weight(const Numbers& numbers, int bits) {
  QuantizedMatrix matrix =
      random_quantized(kOutFeatures, kInFeatures, kGroupSize, bits, numbers.rounded_to, 11);
  const float largest = std::sqrt(static_cast<float>(kInFeatures)) * static_cast<float>(1 << bits);
  const auto scaled = [&](const mx::array& x, float factor) {
    return numbers.hold(mx::astype(mx::astype(x, mx::float32) * factor, numbers.rounded_to));
  };
  matrix.scales = scaled(matrix.scales, 1 / largest);
  matrix.biases = scaled(matrix.biases, static_cast<float>(1 << bits) / largest / 2);
  mx::eval(matrix.scales, matrix.biases);
  return matrix;
}

// The product as a layer makes it: packed where the device has kernels for that.
mx::array product(const mx::array& x, const QuantizedMatrix& weight) {
  if (const auto packed = pack_for_device(weight)) return packed_linear(x, *packed);
  return quantized_linear(x, weight);
}

void add_quantized(std::vector<OpCase>& cases, int bits) {
  for (int num_tokens : kTokenCounts) {
    const auto inputs = [num_tokens](const Numbers& n) { return n({num_tokens, kInFeatures}, 12); };
    const std::string suffix = text("/", bits, "_bits_", num_tokens, "_tokens");
    cases.push_back({"quantized_linear" + suffix, Exactness::kProduct, nullptr,
                     [inputs, bits](const Numbers& n) {
                       return std::vector{quantized_linear(inputs(n), quantized_weight(n, bits))};
                     }});
    cases.push_back(
        {"packed_linear" + suffix, Exactness::kProduct, nullptr, [inputs, bits](const Numbers& n) {
           return std::vector{product(inputs(n), quantized_weight(n, bits))};
         }});
  }
  cases.push_back({text("quantized_rows/", bits, "_bits"), Exactness::kRounded, nullptr,
                   [bits](const Numbers& numbers) {
                     const mx::array ids({3, 0, kOutFeatures - 1, 3}, mx::int32);
                     return std::vector{
                         quantized_rows(quantized_weight(numbers, bits), ids, numbers.held_in)};
                   }});
}

}  // namespace

std::vector<OpCase> layer_cases(bool quick) {
  std::vector<OpCase> cases;
  add_elementwise(cases);
  add_dense(cases);
  for (int bits : quick ? std::vector<int>{4} : std::vector<int>{2, 3, 4, 5, 6, 8})
    add_quantized(cases, bits);
  return cases;
}

}  // namespace vllm_metal::selftest
