// SPDX-License-Identifier: Apache-2.0
#include "files/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <set>
#include <stdexcept>
#include <utility>

#include "common/text.h"
#include "files/gguf_cursor.h"
#include "files/utf8.h"

namespace vllm_metal {

namespace {

constexpr uint64_t kMaxNameBytes = 65535;  // of a key or tensor name
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint32_t kMaxDimensions = 4;

void take_metadata(GgufCursor& cursor, uint64_t count, GgufHeader& header) {
  for (uint64_t i = 0; i < count; ++i) {
    std::string key = cursor.take_string("a metadata key", kMaxNameBytes);
    try {
      if (!header.metadata.emplace(key, cursor.take_value()).second) {
        throw std::invalid_argument("it appears twice.");
      }
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(text("metadata key \"", printable(key), "\": ", error.what()));
    }
  }
}

std::vector<int64_t> take_shape(GgufCursor& cursor) {
  auto dimensions = cursor.take<uint32_t>();
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    throw std::invalid_argument(
        text("it has ", dimensions, " dimensions; 1 to ", kMaxDimensions, " are allowed."));
  }
  std::vector<int64_t> shape;
  for (uint32_t i = 0; i < dimensions; ++i) {
    auto extent = cursor.take<uint64_t>();
    if (extent < 1 || extent > std::numeric_limits<int32_t>::max()) {
      throw std::invalid_argument(text("extent ", extent, " is out of range 1 to 2147483647."));
    }
    shape.push_back(static_cast<int64_t>(extent));
  }
  std::reverse(shape.begin(), shape.end());
  return shape;
}

uint64_t nbytes_of(const GgufTensor& tensor) {
  uint64_t bytes = tensor.row_bytes();
  for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) {
    auto extent = static_cast<uint64_t>(tensor.shape[i]);
    if (bytes > std::numeric_limits<int64_t>::max() / extent) {
      throw std::invalid_argument(text("shape [", join(tensor.shape), "] is out of range."));
    }
    bytes *= extent;
  }
  return bytes;
}

// The offset is left relative to the data section, which begins after the last description.
GgufTensor take_tensor(GgufCursor& cursor, uint64_t alignment) {
  GgufTensor tensor;
  tensor.name = cursor.take_string("a tensor name", kMaxNameBytes);
  try {
    tensor.shape = take_shape(cursor);
    tensor.type = ggml_type(cursor.take<uint32_t>());
    if (tensor.shape.back() % elements_per_block(tensor.type) != 0) {
      throw std::invalid_argument(text("its rows have ", tensor.shape.back(), " elements, not a ",
                                       "multiple of ", elements_per_block(tensor.type), " as ",
                                       name_of(tensor.type), " needs."));
    }
    tensor.nbytes = nbytes_of(tensor);
    tensor.offset = cursor.take<uint64_t>();
    if (tensor.offset % alignment != 0) {
      throw std::invalid_argument(
          text("offset ", tensor.offset, " is no multiple of the alignment, ", alignment, "."));
    }
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(text("tensor \"", printable(tensor.name), "\": ", error.what()));
  }
  return tensor;
}

uint64_t alignment_of(const GgufHeader& header) {
  auto found = header.metadata.find("general.alignment");
  if (found == header.metadata.end()) return kDefaultAlignment;
  const auto* alignment = std::get_if<uint64_t>(&found->second);
  if (!alignment || *alignment < 8 || *alignment > 65536 || !std::has_single_bit(*alignment)) {
    throw std::invalid_argument("general.alignment must be a power of two from 8 to 65536.");
  }
  return *alignment;
}

// Turns offsets into file offsets; tensors must lie in the file, apart, under different names.
void place_tensors(GgufHeader& header, uint64_t data_begin, uint64_t file_size) {
  std::set<std::string_view> names;
  std::vector<const GgufTensor*> order;
  for (GgufTensor& tensor : header.tensors) {
    if (!names.insert(tensor.name).second) {
      throw std::invalid_argument(text("tensor \"", printable(tensor.name), "\" appears twice."));
    }
    uint64_t available = file_size > data_begin ? file_size - data_begin : 0;
    if (tensor.offset > available || tensor.nbytes > available - tensor.offset) {
      throw std::invalid_argument(text("tensor \"", printable(tensor.name), "\" needs ",
                                       tensor.nbytes, " bytes at offset ", tensor.offset,
                                       " but the file has only ", available, " of data."));
    }
    tensor.offset += data_begin;
    order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(),
            [](const auto* a, const auto* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i]->offset - order[i - 1]->offset < order[i - 1]->nbytes) {
      throw std::invalid_argument(text("tensors \"", printable(order[i - 1]->name), "\" and \"",
                                       printable(order[i]->name), "\" overlap."));
    }
  }
}

void check_magic(GgufCursor& cursor) {
  auto magic = cursor.take<std::array<char, 4>>();
  if (std::string_view(magic.data(), magic.size()) != "GGUF") {
    throw std::invalid_argument("it does not begin with \"GGUF\"; this is no GGUF file.");
  }
  auto version = cursor.take<uint32_t>();
  if (version != 2 && version != 3) {
    bool big_endian = version != 0 && (version & 0xffff) == 0;
    throw std::invalid_argument(big_endian ? "the file is big-endian; convert it first."
                                           : text("version must be 2 or 3 but is ", version, "."));
  }
}

GgufHeader parse(GgufCursor cursor, uint64_t file_size, const std::string& file_name) {
  // Descriptions with at least a name, a dimension, a type and a place; keys with a value. In
  // memory they take several times as much, so that their number is bounded too.
  constexpr uint64_t kMinTensorBytes = 8 + 4 + 8 + 4 + 8, kMaxTensors = 1'000'000;
  constexpr uint64_t kMinMetadataBytes = 8 + 4 + 1, kMaxMetadata = 100'000;
  try {
    check_magic(cursor);
    GgufHeader header;
    uint64_t num_tensors = cursor.take_count("tensors", kMinTensorBytes, kMaxTensors);
    take_metadata(cursor, cursor.take_count("metadata values", kMinMetadataBytes, kMaxMetadata),
                  header);
    uint64_t alignment = alignment_of(header);
    for (uint64_t i = 0; i < num_tensors; ++i) {
      header.tensors.push_back(take_tensor(cursor, alignment));
    }
    uint64_t data_begin = (cursor.position() + alignment - 1) / alignment * alignment;
    place_tensors(header, data_begin, file_size);
    return header;
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(text("[gguf] ", file_name, ": ", error.what()));
  }
}

}  // namespace

uint64_t GgufTensor::row_bytes() const {
  return static_cast<uint64_t>(shape.back() / elements_per_block(type)) * bytes_per_block(type);
}

GgufHeader parse_gguf_header(std::span<const std::byte> file, const std::string& file_name) {
  auto read = [file](uint64_t offset, std::span<std::byte> out) {
    std::memcpy(out.data(), file.data() + offset, out.size());
  };
  return parse(GgufCursor(read, file.size()), file.size(), file_name);
}

GgufHeader read_gguf_header(const InputFile& file) {
  auto read = [&file](uint64_t offset, std::span<std::byte> out) { file.read(offset, out); };
  return parse(GgufCursor(read, file.size()), file.size(), file.path().string());
}

}  // namespace vllm_metal
