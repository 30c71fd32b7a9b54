// SPDX-License-Identifier: Apache-2.0
// Arrays that cross between the core and numpy.
#pragma once

#include <nanobind/ndarray.h>

#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

#include "sampling/logprobs.h"

namespace vllm_metal {

// int32 [n, ceil(vocab_size / 32)]: the tokens that grammars allow, one bit each.
using Bitmask =
    nanobind::ndarray<const int32_t, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;

// A numpy array that takes over the values.
template <typename T>
nanobind::object to_numpy(std::vector<T> values, std::initializer_list<size_t> shape) {
  auto* kept = new std::vector<T>(std::move(values));
  nanobind::capsule owner(kept,
                          [](void* data) noexcept { delete static_cast<std::vector<T>*>(data); });
  return nanobind::cast(nanobind::ndarray<nanobind::numpy, T>(kept->data(), shape, owner));
}

// (token_ids [rows, width], scores [rows, width], ranks [rows])
inline nanobind::tuple score_arrays(Logprobs logprobs) {
  const size_t rows = logprobs.ranks.size(), width = static_cast<size_t>(logprobs.width);
  return nanobind::make_tuple(to_numpy(std::move(logprobs.token_ids), {rows, width}),
                              to_numpy(std::move(logprobs.values), {rows, width}),
                              to_numpy(std::move(logprobs.ranks), {rows}));
}

}  // namespace vllm_metal
