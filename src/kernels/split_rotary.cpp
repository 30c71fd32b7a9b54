// SPDX-License-Identifier: Apache-2.0
#include "kernels/split_rotary.h"

#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "common/text.h"
#include "kernels/checks.h"
#include "kernels/compile_op.h"
#include "kernels/cpu/split_rotary.h"
#include "kernels/device_kernels.h"
#include "kernels/gpu/rotary_kv_write.h"
#include "kernels/kv_write.h"

namespace vllm_metal {

namespace {

void check_arguments(const char* op, const mx::array& qkv, const mx::array& cos_sin,
                     const HeadCounts& heads) {
  if (heads.num_heads < 1 || heads.num_kv_heads < 1 || heads.head_dim < 1) {
    throw std::invalid_argument(text("[", op, "] num_heads, num_kv_heads and head_dim must be ",
                                     "positive but are ", heads.num_heads, ", ", heads.num_kv_heads,
                                     " and ", heads.head_dim, "."));
  }
  check_floating(op, "qkv", qkv);
  const int width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim;
  if (qkv.ndim() != 2 || qkv.shape(1) != width) {
    throw std::invalid_argument(text("[", op, "] qkv must have shape (num_tokens,", width, ") for ",
                                     heads.num_heads, " + 2 * ", heads.num_kv_heads, " heads of ",
                                     heads.head_dim, " but has ", qkv.shape(), "."));
  }
  if (cos_sin.dtype() != mx::float32) {
    throw std::invalid_argument(
        text("[", op, "] cos_sin must be float32 but is ", cos_sin.dtype(), "."));
  }
  if (cos_sin.ndim() != 2 || cos_sin.shape(0) != qkv.shape(0) || cos_sin.shape(1) % 2 != 0 ||
      cos_sin.shape(1) > heads.head_dim) {
    throw std::invalid_argument(text("[", op, "] cos_sin must have shape (", qkv.shape(0),
                                     ",rotary_dim) with an even rotary_dim of at most ",
                                     heads.head_dim, " but has ", cos_sin.shape(), "."));
  }
}

// Columns [begin, end) of the last dimension.
mx::array columns(const mx::array& x, int begin, int end) {
  mx::Shape start(x.ndim(), 0);
  mx::Shape stop = x.shape();
  start.back() = begin;
  stop.back() = end;
  return mx::slice(x, std::move(start), std::move(stop));
}

// x [num_tokens, heads, head_dim], cos and sin [num_tokens, 1, rotary_dim / 2].
mx::array rotate(const mx::array& x, const mx::array& cos, const mx::array& sin) {
  const int half = cos.shape(2);
  const int head_dim = x.shape(2);
  const mx::array first = mx::astype(columns(x, 0, half), mx::float32);
  const mx::array second = mx::astype(columns(x, half, 2 * half), mx::float32);
  return mx::concatenate(
      {mx::astype(first * cos - second * sin, x.dtype()),
       mx::astype(second * cos + first * sin, x.dtype()), columns(x, 2 * half, head_dim)},
      -1);
}

// Of arrays of one shape: x, with the halves of each head swapped, cosines, sines, and -1 for the
// first half, 1 for the second.
std::vector<mx::array> rotated(const std::vector<mx::array>& inputs) {
  const mx::array x = mx::astype(inputs[0], mx::float32);
  const mx::array swapped = mx::astype(inputs[1], mx::float32);
  return {mx::astype(x * inputs[2] + swapped * inputs[3] * inputs[4], inputs[0].dtype())};
}

}  // namespace

QueryKeyValue split_rotary(const mx::array& qkv, const mx::array& cos_sin,
                           const HeadCounts& heads) {
  check_arguments("split_rotary", qkv, cos_sin, heads);
  if (use_cpu_kernels()) return cpu::split_rotary(qkv, cos_sin, heads);
  if (use_compiled_ops() && cos_sin.shape(1) == heads.head_dim)
    return split_rotary_compiled(qkv, cos_sin, heads);
  return split_rotary_fallback(qkv, cos_sin, heads);
}

QueryKeyValue split_rotary_fallback(const mx::array& qkv, const mx::array& cos_sin,
                                    const HeadCounts& heads) {
  check_arguments("split_rotary", qkv, cos_sin, heads);
  const int num_tokens = qkv.shape(0);
  const int half = cos_sin.shape(1) / 2;
  const mx::array cos = mx::expand_dims(columns(cos_sin, 0, half), 1);
  const mx::array sin = mx::expand_dims(columns(cos_sin, half, 2 * half), 1);
  // [num_tokens, num_heads + 2 * num_kv_heads, head_dim]
  const mx::array all = mx::unflatten(qkv, 1, {-1, heads.head_dim});
  const int rotated = heads.num_heads + heads.num_kv_heads;
  const auto head_range = [&](int begin, int end) {
    return mx::slice(all, {0, begin, 0}, {num_tokens, end, heads.head_dim});
  };
  return {rotate(head_range(0, heads.num_heads), cos, sin),
          rotate(head_range(heads.num_heads, rotated), cos, sin),
          head_range(rotated, rotated + heads.num_kv_heads)};
}

QueryKeyValue split_rotary_compiled(const mx::array& qkv, const mx::array& cos_sin,
                                    const HeadCounts& heads) {
  check_arguments("split_rotary", qkv, cos_sin, heads);
  if (cos_sin.shape(1) != heads.head_dim) {
    throw std::invalid_argument(text("[split_rotary_compiled] rotary_dim must be head_dim, ",
                                     heads.head_dim, ", but is ", cos_sin.shape(1), "."));
  }
  const int num_tokens = qkv.shape(0), half = heads.head_dim / 2;
  const mx::array all = mx::unflatten(qkv, 1, {-1, 2, half});
  const mx::array cos = mx::expand_dims(columns(cos_sin, 0, half), {1, 2});
  const mx::array sin = mx::expand_dims(columns(cos_sin, half, 2 * half), {1, 2});
  const mx::array signs = mx::reshape(mx::array({-1.0f, 1.0f}), {1, 1, 2, 1});
  static const auto compiled = compile_op(rotated);
  // Queries and keys one by one, so that either lies together.
  const auto turn = [&](int begin, int end) {
    const mx::Shape shape{num_tokens, end - begin, 2, half};
    const mx::array x = mx::slice(all, {0, begin, 0, 0}, {num_tokens, end, 2, half});
    const mx::array swapped =  // from the second half on, backwards
        mx::slice(all, {0, begin, 1, 0}, {num_tokens, end, -3, half}, {1, 1, -1, 1});
    const std::vector<mx::array> result =
        compiled({x, swapped, mx::broadcast_to(cos, shape), mx::broadcast_to(sin, shape),
                  mx::broadcast_to(signs, shape)});
    return mx::flatten(result.front(), 2, 3);
  };
  const int num_rotated = heads.num_heads + heads.num_kv_heads;
  return {turn(0, heads.num_heads), turn(heads.num_heads, num_rotated),
          mx::flatten(mx::slice(all, {0, num_rotated, 0, 0},
                                {num_tokens, num_rotated + heads.num_kv_heads, 2, half}),
                      2, 3)};
}

mx::array rotary_kv_write(const mx::array& qkv, const mx::array& cos_sin, const HeadCounts& heads,
                          KVView& view) {
  const bool on_gpu = use_gpu_cache_kernels(view.keys);
  if (!use_cpu_kernels() && !on_gpu) {  // the two ops check what they are given
    auto [queries, keys, values] = split_rotary(qkv, cos_sin, heads);
    kv_write(view, keys, values);
    return queries;
  }
  constexpr const char* kOp = "rotary_kv_write";
  check_arguments(kOp, qkv, cos_sin, heads);
  check_shape(kOp, "qkv", qkv, {view.layout.num_tokens(), qkv.shape(1)});
  check_cache_for_writing(kOp, view, heads.num_kv_heads, heads.head_dim, qkv.dtype());
  if (on_gpu) return gpu::rotary_kv_write(qkv, cos_sin, heads, view);
  return cpu::rotary_kv_write(qkv, cos_sin, heads, view);
}

mx::array rotary_kv_write_node(std::shared_ptr<mx::Primitive> primitive, const mx::array& qkv,
                               const mx::array& cos_sin, const HeadCounts& heads, KVView& view) {
  auto outputs = mx::array::make_arrays(
      {{qkv.shape(0), heads.num_heads, heads.head_dim}, view.keys.shape(), view.values.shape()},
      {qkv.dtype(), view.keys.dtype(), view.values.dtype()}, std::move(primitive),
      {qkv, cos_sin, view.keys, view.values, view.layout.slot_mapping_array});
  view.keys = std::move(outputs[1]);
  view.values = std::move(outputs[2]);
  return std::move(outputs[0]);
}

}  // namespace vllm_metal
