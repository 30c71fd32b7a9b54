// SPDX-License-Identifier: Apache-2.0
// Format: https://github.com/huggingface/safetensors (8-byte little-endian header length,
// JSON header, tensor data).
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "files/input_file.h"
#include "files/tensor_info.h"

namespace vllm_metal {

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;              // in the order of their offsets
  std::map<std::string, std::string> metadata;  // the "__metadata__" member
};

// Parses the bytes of a file's beginning (at least its whole header) given the file's size.
// Checks everything: header length, dtype, shape overflow, offsets inside the file, no
// overlap, no hole, no duplicate. Throws std::invalid_argument; `file_name` is for messages.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> beginning, uint64_t file_size,
                                           const std::string& file_name);

// Reads the header of a file. Throws std::runtime_error when it cannot be read.
SafetensorsHeader read_safetensors_header(const InputFile& file);
SafetensorsHeader read_safetensors_header(const std::filesystem::path& path);

// Writes a file tensor by tensor, so that one tensor at most is in memory. The tensors and
// their order are declared first; `write` must then be called once for each, in order.
class SafetensorsWriter {
 public:
  // The offsets of `tensors` are computed here; whatever they hold is ignored. Throws
  // std::runtime_error when the file exists or the disk refuses.
  SafetensorsWriter(std::filesystem::path path, std::vector<TensorInfo> tensors,
                    const std::map<std::string, std::string>& metadata);
  ~SafetensorsWriter();  // a file that was not finished is removed
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // Throws std::invalid_argument when the size is not the declared one, std::runtime_error
  // when the disk refuses.
  void write(std::span<const std::byte> data);
  // Flushes to disk; throws std::runtime_error when a tensor is missing or the disk refuses.
  void finish();

 private:
  void discard();  // closes and removes an unfinished file

  std::filesystem::path path_;
  std::vector<TensorInfo> tensors_;
  size_t next_ = 0;
  int descriptor_ = -1;
};

}  // namespace vllm_metal
