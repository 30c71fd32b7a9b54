// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <set>
#include <stdexcept>
#include <system_error>

#include "common/text.h"
#include "files/json.h"
#include "files/safetensors.h"

namespace vllm_metal {

namespace {

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxWriteBytes = size_t{1} << 30;  // some systems refuse more than 2 GiB at once

[[noreturn]] void disk_error(const std::filesystem::path& path, int error) {
  throw std::runtime_error(text("[safetensors] cannot write ", path.string(), ": ",
                                std::generic_category().message(error), "."));
}

void write_all(int descriptor, std::span<const std::byte> data, const std::filesystem::path& path) {
  while (!data.empty()) {
    ssize_t count = ::write(descriptor, data.data(), std::min(data.size(), kMaxWriteBytes));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) disk_error(path, errno);
    data = data.subspan(static_cast<size_t>(count));
  }
}

// Sets sizes and offsets, the latter counted from the end of the header.
void place(std::vector<TensorInfo>& tensors) {
  std::set<std::string_view> names;
  uint64_t offset = 0;
  for (TensorInfo& tensor : tensors) {
    if (tensor.name == "__metadata__" || !names.insert(tensor.name).second) {
      throw std::invalid_argument(
          text("[safetensors] tensor name \"", tensor.name, "\" is reserved or declared twice."));
    }
    tensor.nbytes = checked_nbytes(tensor.shape, tensor.dtype);
    tensor.offset = offset;
    offset += tensor.nbytes;
    if (offset > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      throw std::invalid_argument("[safetensors] the tensors together exceed 63 bits of size.");
    }
  }
}

Json header_json(const std::vector<TensorInfo>& tensors,
                 const std::map<std::string, std::string>& metadata) {
  Json::Object header;
  if (!metadata.empty()) {
    Json::Object members;
    for (const auto& [key, value] : metadata) members.emplace_back(key, Json(value));
    header.emplace_back("__metadata__", Json(std::move(members)));
  }
  for (const TensorInfo& tensor : tensors) {
    Json::Array shape;
    for (int64_t extent : tensor.shape) shape.emplace_back(extent);
    auto begin = static_cast<int64_t>(tensor.offset);
    auto end = static_cast<int64_t>(tensor.offset + tensor.nbytes);
    Json::Object entry;
    entry.emplace_back("dtype", Json(std::string(name_of(tensor.dtype))));
    entry.emplace_back("shape", Json(std::move(shape)));
    entry.emplace_back("data_offsets", Json(Json::Array{Json(begin), Json(end)}));
    header.emplace_back(tensor.name, Json(std::move(entry)));
  }
  return Json(std::move(header));
}

// The length and the JSON, padded so that the data begins at a multiple of 8.
std::string header_bytes(const Json& header) {
  std::string json = header.dump();
  json.resize((json.size() + 7) / 8 * 8, ' ');
  std::string bytes(kLengthBytes, '\0');
  for (size_t i = 0; i < kLengthBytes; ++i) bytes[i] = static_cast<char>(json.size() >> (8 * i));
  return bytes + json;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, std::vector<TensorInfo> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : path_(std::move(path)), tensors_(std::move(tensors)) {
  place(tensors_);
  std::string header = header_bytes(header_json(tensors_, metadata));
  for (TensorInfo& tensor : tensors_) tensor.offset += header.size();
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor_ < 0) disk_error(path_, errno);
  try {
    write_all(descriptor_, std::as_bytes(std::span(header)), path_);
  } catch (...) {
    discard();
    throw;
  }
}

SafetensorsWriter::~SafetensorsWriter() { discard(); }

void SafetensorsWriter::discard() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(path_.c_str());
  descriptor_ = -1;
}

void SafetensorsWriter::write(std::span<const std::byte> data) {
  if (next_ == tensors_.size() || descriptor_ < 0) {
    throw std::invalid_argument("[safetensors] every declared tensor was written before.");
  }
  const TensorInfo& tensor = tensors_[next_];
  if (data.size() != tensor.nbytes) {
    throw std::invalid_argument(text("[safetensors] tensor \"", tensor.name, "\" has ",
                                     tensor.nbytes, " bytes but got ", data.size(), "."));
  }
  write_all(descriptor_, data, path_);
  ++next_;
}

void SafetensorsWriter::finish() {
  if (next_ != tensors_.size()) {
    throw std::runtime_error(
        text("[safetensors] tensor \"", tensors_[next_].name, "\" was not written."));
  }
  if (descriptor_ < 0) return;
  if (::fsync(descriptor_) != 0) disk_error(path_, errno);
  // close() may report what the disk refused late; the descriptor is gone either way.
  int descriptor = descriptor_;
  descriptor_ = -1;
  if (::close(descriptor) != 0) {
    int error = errno;
    ::unlink(path_.c_str());
    disk_error(path_, error);
  }
}

}  // namespace vllm_metal
