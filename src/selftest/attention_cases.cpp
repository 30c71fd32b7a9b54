// SPDX-License-Identifier: Apache-2.0
#include "common/text.h"
#include "selftest/attention_inputs.h"
#include "selftest/op_case.h"

namespace vllm_metal::selftest {

namespace {

// What a batch is made of, by the name of its cases.
struct Batch {
  const char* name;
  std::vector<RequestShape> requests;
  int block_size;  // 0: one range a request
  OptionChoice options;
};

std::vector<Batch> batches() {
  return {
      {"decode_contiguous", {{257, 1}, {256, 1}, {1, 1}, {700, 1}}, 0, {}},
      {"decode_paged", {{257, 1}, {256, 1}, {1, 1}, {700, 1}}, 16, {}},
      {"mixed", {{300, 45}, {129, 1}, {64, 64}, {515, 3}, {40, 40}}, 16, {}},
      {"mixed_window_cap_sinks", {{300, 45}, {129, 1}, {515, 3}, {40, 40}}, 32, {100, 20.0f, true}},
      {"long", {{8192, 1}, {4097, 33}}, 16, {}},
  };
}

std::vector<mx::array> attended(const Numbers& numbers, const Batch& batch, int head_dim) {
  AttentionInputs inputs = make_inputs(batch.requests, {6, 2, head_dim}, numbers.rounded_to);
  for (mx::array* x : {&inputs.queries, &inputs.keys, &inputs.values}) *x = numbers.hold(*x);
  return {attend(inputs, place(batch.requests, batch.block_size), batch.options)};
}

}  // namespace

std::vector<OpCase> attention_cases(bool quick) {
  std::vector<OpCase> cases;
  for (int head_dim : head_dims(quick))
    for (const Batch& batch : batches()) {
      if (batch.name == std::string("long") && (quick || head_dim != 128)) continue;
      cases.push_back({text("varlen_attention/", batch.name, "_", head_dim), Exactness::kRounded,
                       cache_kernels_of(head_dim), [batch, head_dim](const Numbers& numbers) {
                         return attended(numbers, batch, head_dim);
                       }});
    }
  return cases;
}

}  // namespace vllm_metal::selftest
