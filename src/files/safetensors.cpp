// SPDX-License-Identifier: Apache-2.0
#include "files/safetensors.h"

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "common/text.h"
#include "files/json.h"
#include "files/utf8.h"

namespace vllm_metal {

namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation

uint64_t read_little_endian(std::span<const std::byte> bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) value |= std::to_integer<uint64_t>(bytes[i]) << (8 * i);
  return value;
}

// The checked length of the JSON header, from the first bytes of the file.
uint64_t header_length(std::span<const std::byte> beginning, uint64_t file_size) {
  if (file_size < kLengthBytes || beginning.size() < kLengthBytes) {
    throw std::invalid_argument(text("the file has ", file_size, " bytes, too few for a header."));
  }
  uint64_t length = read_little_endian(beginning);
  if (length > kMaxHeaderBytes) {
    throw std::invalid_argument(
        text("the header claims ", length, " bytes; at most ", kMaxHeaderBytes, " are allowed."));
  }
  if (length > file_size - kLengthBytes) {
    throw std::invalid_argument(text("the header claims ", length, " bytes but the file has only ",
                                     file_size - kLengthBytes, " after its length."));
  }
  return length;
}

StoredDtype parse_dtype(const std::string& name) {
  std::vector<const char*> allowed;
  for (int i = 0; i <= static_cast<int>(StoredDtype::kF64); ++i) {
    auto dtype = static_cast<StoredDtype>(i);
    if (name == name_of(dtype)) return dtype;
    allowed.push_back(name_of(dtype));
  }
  throw std::invalid_argument(
      text("dtype must be one of ", join(allowed), " but got \"", printable(name), "\"."));
}

std::vector<int64_t> parse_shape(const Json& json) {
  std::vector<int64_t> shape;
  for (const Json& extent : json.as_array()) {
    if (!extent.is_int() || extent.as_int() < 0) {
      throw std::invalid_argument(
          text("an extent of the shape must be a non-negative integer but got ",
               printable(extent.dump()), "."));
    }
    shape.push_back(extent.as_int());
  }
  return shape;
}

// One member of the header; offsets in the file count from its data section.
TensorInfo parse_tensor(const std::string& name, const Json& json, uint64_t data_size) {
  TensorInfo tensor;
  tensor.name = name;
  tensor.dtype = parse_dtype(json.at("dtype").as_string());
  tensor.shape = parse_shape(json.at("shape"));
  const Json::Array& offsets = json.at("data_offsets").as_array();
  if (json.as_object().size() != 3) {
    throw std::invalid_argument("only the keys dtype, shape and data_offsets are allowed.");
  }
  bool valid = offsets.size() == 2 && offsets[0].is_int() && offsets[1].is_int() &&
               offsets[0].as_int() >= 0 && offsets[0].as_int() <= offsets[1].as_int();
  if (!valid) {
    throw std::invalid_argument(
        text("data_offsets must be two integers, 0 <= begin <= end, but got ",
             printable(json.at("data_offsets").dump()), "."));
  }
  tensor.offset = static_cast<uint64_t>(offsets[0].as_int());
  auto end = static_cast<uint64_t>(offsets[1].as_int());
  if (end > data_size) {
    throw std::invalid_argument(
        text("it ends at byte ", end, " of the data but the file has only ", data_size, "."));
  }
  tensor.nbytes = end - tensor.offset;
  uint64_t needed = checked_nbytes(tensor.shape, tensor.dtype);
  if (needed != tensor.nbytes) {
    throw std::invalid_argument(text("shape [", join(tensor.shape), "] of ", name_of(tensor.dtype),
                                     " needs ", needed, " bytes but its offsets span ",
                                     tensor.nbytes, "."));
  }
  return tensor;
}

std::map<std::string, std::string> parse_metadata(const Json& json) {
  std::map<std::string, std::string> metadata;
  if (json.is_null()) return metadata;  // MLX writes that where there is none
  for (const auto& [key, value] : json.as_object()) metadata[key] = value.as_string();
  return metadata;
}

// Every byte of the data section must belong to one tensor. Turns offsets into file offsets.
void check_layout(SafetensorsHeader& header, uint64_t data_begin, uint64_t data_size) {
  // An empty tensor sorts before the one that begins where it lies.
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) {
              return std::tie(a.offset, a.nbytes, a.name) < std::tie(b.offset, b.nbytes, b.name);
            });
  uint64_t expected = 0;
  for (TensorInfo& tensor : header.tensors) {
    if (tensor.offset != expected) {
      const char* trouble =
          tensor.offset < expected ? "overlaps the tensor before it" : "leaves a hole before it";
      throw std::invalid_argument(text("tensor \"", printable(tensor.name), "\" ", trouble,
                                       ": it begins at byte ", tensor.offset,
                                       " of the data instead of ", expected, "."));
    }
    expected += tensor.nbytes;
    tensor.offset += data_begin;
  }
  if (expected != data_size) {
    throw std::invalid_argument(
        text("the tensors hold ", expected, " bytes but the file has ", data_size, " of data."));
  }
}

SafetensorsHeader parse_header(std::span<const std::byte> beginning, uint64_t file_size) {
  uint64_t length = header_length(beginning, file_size);
  if (beginning.size() - kLengthBytes < length) {
    throw std::invalid_argument(text("the header has ", length, " bytes but only ",
                                     beginning.size() - kLengthBytes, " were read."));
  }
  std::string_view json_text(reinterpret_cast<const char*>(beginning.data()) + kLengthBytes,
                             length);
  const Json json = Json::parse(json_text);
  const uint64_t data_begin = kLengthBytes + length;
  const uint64_t data_size = file_size - data_begin;
  SafetensorsHeader header;
  for (const auto& [name, value] : json.as_object()) {
    try {
      if (name == "__metadata__") {
        header.metadata = parse_metadata(value);
      } else {
        header.tensors.push_back(parse_tensor(name, value, data_size));
      }
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(text("entry \"", printable(name), "\": ", error.what()));
    }
  }
  check_layout(header, data_begin, data_size);
  return header;
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> beginning, uint64_t file_size,
                                           const std::string& file_name) {
  try {
    return parse_header(beginning, file_size);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(text("[safetensors] ", file_name, ": ", error.what()));
  }
}

SafetensorsHeader read_safetensors_header(const InputFile& file) {
  std::vector<std::byte> beginning(std::min(kLengthBytes, file.size()));
  file.read(0, beginning);
  try {
    beginning.resize(kLengthBytes + header_length(beginning, file.size()));
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(text("[safetensors] ", file.path().string(), ": ", error.what()));
  }
  file.read(0, beginning);
  return parse_safetensors_header(beginning, file.size(), file.path().string());
}

SafetensorsHeader read_safetensors_header(const std::filesystem::path& path) {
  return read_safetensors_header(InputFile(path));
}

}  // namespace vllm_metal
