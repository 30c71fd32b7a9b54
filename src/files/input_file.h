// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace vllm_metal {

// A regular file opened for reading at given offsets. Thread-safe: reads share no position.
class InputFile {
 public:
  // Throws std::runtime_error when the file cannot be opened or is no regular file.
  explicit InputFile(std::filesystem::path path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  uint64_t size() const { return size_; }  // bytes, when it was opened

  // Fills `out` from `offset` on. Throws std::runtime_error when the disk refuses or the file
  // ends before (it was changed while being read).
  void read(uint64_t offset, std::span<std::byte> out) const;

 private:
  std::filesystem::path path_;
  uint64_t size_ = 0;
  int descriptor_ = -1;
};

// All of a small file. Throws std::runtime_error as InputFile does, std::invalid_argument when it
// has more than `max_bytes`: what a file claims to hold is not taken into memory unseen.
std::string read_small_file(const std::filesystem::path& path, uint64_t max_bytes);

}  // namespace vllm_metal
