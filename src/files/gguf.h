// SPDX-License-Identifier: Apache-2.0
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3,
// little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "files/input_file.h"

namespace vllm_metal {

// The tensor types that we read; the values are the format's.
enum class GgmlType : uint32_t { kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8, kBF16 = 30 };

// A quantised type stores blocks of 32 consecutive elements of a row; the others, single elements.
int64_t elements_per_block(GgmlType type);
uint64_t bytes_per_block(GgmlType type);
const char* name_of(GgmlType type);
// Throws std::invalid_argument that lists the supported types for any other number.
GgmlType ggml_type(uint32_t number);

// A metadata value; small integers are widened, arrays hold one kind of value.
using GgufArray = std::variant<std::vector<bool>, std::vector<int64_t>, std::vector<uint64_t>,
                               std::vector<float>, std::vector<double>, std::vector<std::string>>;
using GgufValue = std::variant<bool, int64_t, uint64_t, float, double, std::string, GgufArray>;

struct GgufTensor {
  std::string name;
  GgmlType type = GgmlType::kF32;
  std::vector<int64_t> shape;  // row-major, [rows, columns]: the reverse of the file's order
  uint64_t offset = 0;         // from the start of the file, bytes
  uint64_t nbytes = 0;

  uint64_t row_bytes() const;  // of one row, the last dimension
};

struct GgufHeader {
  std::map<std::string, GgufValue, std::less<>> metadata;
  std::vector<GgufTensor> tensors;  // in the order of the file
};

// Reads metadata and tensor descriptions, which end within the first 256 MiB of any real file.
// Checks everything: every count, length and size against the file, types, alignment, duplicate
// names, overlaps. Throws std::invalid_argument; `file_name` is for messages.
GgufHeader parse_gguf_header(std::span<const std::byte> file, const std::string& file_name);
GgufHeader read_gguf_header(const InputFile& file);

}  // namespace vllm_metal
