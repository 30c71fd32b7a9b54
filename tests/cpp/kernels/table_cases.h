// SPDX-License-Identifier: Apache-2.0
// What the tables of cases share: where an array lies in memory, and which cases of a product of
// choices are run.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "kernels/covering_array.h"
#include "kernels/kernel_test.h"

namespace vllm_metal::testing_support {

// Sizes around registers, tiles and blocks.
inline const std::vector<int> kOddSizes = {1, 7, 17, 33, 129};

// Where the elements of a matrix lie.
enum class Placement {
  kPlain,
  kOffset,      // from the second column of a wider matrix on: aligned to one element only
  kEveryOther,  // every other row of a taller matrix
  kTransposed,  // columns lie together
};
inline const std::vector<Placement> kPlacements = {Placement::kPlain, Placement::kOffset,
                                                   Placement::kEveryOther, Placement::kTransposed};

inline std::string text_of(Placement placement) {
  return std::vector<std::string>{"plain", "offset", "every other row", "transposed"}.at(
      static_cast<size_t>(placement));
}

// An array of what no result may be made of.
inline mx::array poison(const mx::Shape& shape, mx::Dtype dtype) {
  if (dtype == mx::uint32) return mx::full(shape, 0xdeadbeefu, dtype);
  return mx::full(shape, std::numeric_limits<float>::quiet_NaN(), dtype);
}

// A view with the shape and values of the matrix `plain`.
inline mx::array placed(const mx::array& plain, Placement placement) {
  const int rows = plain.shape(0), columns = plain.shape(1);
  switch (placement) {
    case Placement::kPlain:
      return plain;
    case Placement::kOffset: {
      mx::array wide = mx::concatenate(
          {poison({rows, 1}, plain.dtype()), plain, poison({rows, 3}, plain.dtype())}, 1);
      mx::eval(wide);
      return mx::slice(wide, {0, 1}, {rows, columns + 1});
    }
    case Placement::kEveryOther: {
      mx::array tall = mx::reshape(
          mx::concatenate({poison(plain.shape(), plain.dtype()), plain}, 1), {2 * rows, columns});
      mx::eval(tall);
      return mx::slice(tall, {1, 0}, {2 * rows, columns}, {2, 1});
    }
    case Placement::kTransposed: {
      mx::array columns_first = mx::contiguous(mx::transpose(plain));
      mx::eval(columns_first);
      return mx::transpose(columns_first);
    }
  }
  throw std::invalid_argument("unknown placement");
}

// Whether all cases are wanted: `make test-ops-full`.
inline bool all_cases() {
  const char* value = std::getenv("VLLM_METAL_TEST_OPS");
  return value != nullptr && std::string(value) == "full";
}

// The cases of a table: all pairs of choices, or the whole product where that is wanted.
inline std::vector<Levels> table_cases(const std::vector<int>& counts, unsigned seed) {
  return all_cases() ? product_of(counts) : AllPairs(counts, seed).cases();
}

// Says on stderr how far a long table is, where all cases are wanted.
class Progress {
 public:
  explicit Progress(size_t total) : total_(total) {}
  void step() {
    if (++done_ % 200 != 0 && done_ != total_) return;
    if (all_cases()) std::cerr << "  " << done_ << " of " << total_ << " cases" << std::endl;
  }

 private:
  size_t total_;
  size_t done_ = 0;
};

// Where a table is run: on the CPU with one of its instruction sets, or on the GPU.
struct TableDevice {
  std::optional<cpu::Isa> isa;  // none: the GPU

  void use() const {
    mx::set_default_device(isa ? mx::Device::cpu : mx::Device::gpu);
    if (isa) cpu::set_isa(*isa);
  }
};

inline std::string name_of(const TableDevice& device) {
  return device.isa ? std::string(cpu::name_of(*device.isa)) : "gpu";
}

inline std::vector<TableDevice> gpu_if_any() {
  if (mx::is_available(mx::Device::gpu)) return {TableDevice{}};
  return {};
}

// Every instruction set, for ops that have SIMD kernels, and the GPU.
inline std::vector<TableDevice> table_devices() {
  auto devices = gpu_if_any();
  for (cpu::Isa isa : cpu::supported_isas()) devices.push_back({isa});
  return devices;
}

// The CPU and the GPU.
inline std::vector<TableDevice> table_devices_of_copies() {
  auto devices = gpu_if_any();
  devices.push_back({cpu::supported_isas().front()});
  return devices;
}

// Chooses among the cases of a table, other ones each time and the same ones in each run, so that
// all choices are met although not in all combinations.
class Rotation {
 public:
  // The next `count` of `choices`; all of them where all cases are wanted.
  template <typename Choice>
  std::vector<Choice> next(const std::vector<Choice>& choices, size_t count) {
    if (all_cases() || count >= choices.size()) return choices;
    std::vector<Choice> result;
    for (size_t i = 0; i < count; ++i) result.push_back(next(choices));
    return result;
  }
  template <typename Choice>
  Choice next(const std::vector<Choice>& choices) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return choices[(state_ >> 33) % choices.size()];
  }

 private:
  uint64_t state_ = 1;
};

}  // namespace vllm_metal::testing_support
