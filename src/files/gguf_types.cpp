// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iterator>
#include <map>
#include <stdexcept>

#include "common/text.h"
#include "files/gguf.h"

namespace vllm_metal {

namespace {

struct TypeTraits {
  GgmlType type;
  const char* name;
  int64_t elements;
  uint64_t bytes;
};

constexpr TypeTraits kTypes[] = {
    {GgmlType::kF32, "F32", 1, 4},     {GgmlType::kF16, "F16", 1, 2},
    {GgmlType::kQ4_0, "Q4_0", 32, 18}, {GgmlType::kQ4_1, "Q4_1", 32, 20},
    {GgmlType::kQ8_0, "Q8_0", 32, 34}, {GgmlType::kBF16, "BF16", 1, 2},
};

const TypeTraits& traits(GgmlType type) {
  auto found = std::find_if(std::begin(kTypes), std::end(kTypes),
                            [&](const TypeTraits& entry) { return entry.type == type; });
  if (found == std::end(kTypes)) throw std::invalid_argument("[gguf] not a supported type.");
  return *found;
}

// Names of the types that we cannot represent, so that an error can tell which one it is.
const char* unsupported_type_name(uint32_t type) {
  static const std::map<uint32_t, const char*> kNames = {
      {6, "Q5_0"},    {7, "Q5_1"},     {9, "Q8_1"},   {10, "Q2_K"},   {11, "Q3_K"},
      {12, "Q4_K"},   {13, "Q5_K"},    {14, "Q6_K"},  {15, "Q8_K"},   {16, "IQ2_XXS"},
      {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"},
      {22, "IQ2_S"},  {23, "IQ4_XS"},  {24, "I8"},    {25, "I16"},    {26, "I32"},
      {27, "I64"},    {28, "F64"},     {29, "IQ1_M"}, {34, "TQ1_0"},  {35, "TQ2_0"},
      {39, "MXFP4"},  {40, "NVFP4"},
  };
  auto found = kNames.find(type);
  return found == kNames.end() ? "unknown" : found->second;
}

}  // namespace

GgmlType ggml_type(uint32_t value) {
  std::vector<const char*> allowed;
  for (const TypeTraits& entry : kTypes) {
    if (static_cast<uint32_t>(entry.type) == value) return entry.type;
    allowed.push_back(entry.name);
  }
  throw std::invalid_argument(text("type ", unsupported_type_name(value), " (", value,
                                   ") is not supported; allowed are ", join(allowed), "."));
}

int64_t elements_per_block(GgmlType type) { return traits(type).elements; }

uint64_t bytes_per_block(GgmlType type) { return traits(type).bytes; }

const char* name_of(GgmlType type) { return traits(type).name; }

}  // namespace vllm_metal
