// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "files/gguf.h"

namespace vllm_metal {

// Writes the bytes of a GGUF file; whatever is wrong with them is the test's intention.
class GgufBuilder {
 public:
  struct Tensor {
    std::string name;
    std::vector<uint64_t> dimensions;  // in the file's order: columns first
    uint32_t type;
    std::string data;
    uint64_t offset = UINT64_MAX;  // not set: behind the tensor before
  };

  uint32_t version = 3;
  uint64_t alignment = 32;  // of the data; declared only through metadata
  std::vector<Tensor> tensors;

  template <typename T>
  static std::string bytes(T value) {
    std::string out(sizeof(T), '\0');
    std::memcpy(out.data(), &value, sizeof(T));
    return out;
  }
  static std::string string(const std::string& value) {
    return bytes<uint64_t>(value.size()) + value;
  }

  // A metadata value: its kind and its bytes.
  void add(const std::string& key, uint32_t kind, const std::string& value) {
    metadata_ += string(key) + bytes(kind) + value;
    ++metadata_count_;
  }
  void add_u32(const std::string& key, uint32_t value) { add(key, 4, bytes(value)); }
  void add_f32(const std::string& key, float value) { add(key, 6, bytes(value)); }
  void add_string(const std::string& key, const std::string& value) { add(key, 8, string(value)); }

  void add_tensor(const std::string& name, std::vector<uint64_t> dimensions, GgmlType type,
                  std::string data) {
    tensors.push_back({name, std::move(dimensions), static_cast<uint32_t>(type), std::move(data)});
  }

  std::string build() const {
    std::string out = "GGUF" + bytes(version) + bytes<uint64_t>(tensors.size()) +
                      bytes<uint64_t>(metadata_count_) + metadata_;
    std::string data;
    for (const Tensor& tensor : tensors) {
      uint64_t offset = tensor.offset == UINT64_MAX ? data.size() : tensor.offset;
      out += string(tensor.name) + bytes(static_cast<uint32_t>(tensor.dimensions.size()));
      for (uint64_t extent : tensor.dimensions) out += bytes(extent);
      out += bytes(tensor.type) + bytes(offset);
      data += tensor.data;
      pad(data);
    }
    if (!tensors.empty()) pad(out);
    return out + data;
  }

 private:
  void pad(std::string& text) const {
    text.resize((text.size() + alignment - 1) / alignment * alignment, '\0');
  }

  std::string metadata_;
  uint64_t metadata_count_ = 0;
};

}  // namespace vllm_metal
