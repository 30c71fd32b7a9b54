// SPDX-License-Identifier: Apache-2.0
#include "weights/weight_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "common/mlx_buffer.h"
#include "common/text.h"
#include "files/json.h"
#include "files/safetensors.h"

namespace vllm_metal {

namespace {

namespace fs = std::filesystem;

// Small enough to show progress, large enough for the disk.
constexpr uint64_t kReadChunk = uint64_t{16} << 20;

mx::Dtype mlx_dtype(StoredDtype dtype) {
  switch (dtype) {
    case StoredDtype::kBool:
      return mx::bool_;
    case StoredDtype::kU8:
      return mx::uint8;
    case StoredDtype::kI8:
      return mx::int8;
    case StoredDtype::kU16:
      return mx::uint16;
    case StoredDtype::kI16:
      return mx::int16;
    case StoredDtype::kF16:
      return mx::float16;
    case StoredDtype::kBF16:
      return mx::bfloat16;
    case StoredDtype::kU32:
      return mx::uint32;
    case StoredDtype::kI32:
      return mx::int32;
    case StoredDtype::kF32:
      return mx::float32;
    case StoredDtype::kU64:
      return mx::uint64;
    case StoredDtype::kI64:
      return mx::int64;
    case StoredDtype::kF64:
      return mx::float64;
  }
  throw std::invalid_argument("[weights] unknown dtype.");
}

mx::Shape mlx_shape(const std::vector<int64_t>& shape, const std::string& name) {
  mx::Shape result;
  for (int64_t extent : shape) {
    if (extent > std::numeric_limits<int32_t>::max())
      throw std::invalid_argument(
          text("[weights] tensor ", name, " has a dimension of ", extent, ", more than 2^31 - 1."));
    result.push_back(static_cast<int32_t>(extent));
  }
  return result;
}

std::string shape_text(const std::vector<int64_t>& shape) { return "[" + join(shape) + "]"; }

std::string read_small_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream content;
  if (!file || !(content << file.rdbuf()))
    throw std::runtime_error(text("[weights] cannot read ", path.string(), "."));
  return content.str();
}

}  // namespace

// An open file, closed at the end.
struct WeightStore::File {
  explicit File(fs::path path_)
      : path(std::move(path_)), descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor < 0)
      throw std::runtime_error(
          text("[weights] cannot open ", path.string(), ": ", std::strerror(errno), "."));
  }
  File(File&& other) noexcept
      : path(std::move(other.path)), descriptor(std::exchange(other.descriptor, -1)) {}
  File& operator=(File&&) = delete;
  ~File() {
    if (descriptor >= 0) ::close(descriptor);
  }
  fs::path path;
  int descriptor;
};

WeightStore::WeightStore(const fs::path& dir, LoadProgress progress)
    : dir_(dir), progress_(std::move(progress)) {
  const fs::path single = dir / "model.safetensors", index = dir / "model.safetensors.index.json";
  if (fs::exists(index)) {
    open_shards(dir, index);
  } else if (fs::exists(single)) {
    open_file(single);
  } else {
    throw std::invalid_argument(
        text("[weights] ", dir.string(),
             " has neither model.safetensors nor model.safetensors.index.json."));
  }
}

WeightStore::~WeightStore() = default;

void WeightStore::open_file(const fs::path& path) {
  SafetensorsHeader header = read_safetensors_header(path);
  files_.emplace_back(path);
  for (auto& info : header.tensors) {
    total_bytes_ += info.nbytes;
    std::string name = info.name;
    auto [position, inserted] =
        tensors_.try_emplace(name, Entry{std::move(info), files_.size() - 1});
    if (!inserted)
      throw std::invalid_argument(text("[weights] tensor ", name, " is in ",
                                       files_[position->second.file].path.string(),
                                       " and again in ", path.string(), "."));
  }
}

void WeightStore::open_shards(const fs::path& dir, const fs::path& index) {
  std::map<std::string, std::string> shard_of;
  std::set<std::string> shards;
  try {
    const Json json = Json::parse(read_small_file(index));
    for (const auto& [name, file] : json.at("weight_map").as_object()) {
      shard_of.emplace(name, file.as_string());
      shards.insert(file.as_string());
    }
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(text("[weights] ", index.string(), ": ", error.what()));
  }
  for (const auto& shard : shards) {
    // A shard is a file of this folder: the index is not trusted with paths.
    if (shard.empty() || shard == "." || shard == ".." || shard.find('/') != std::string::npos)
      throw std::invalid_argument(text("[weights] ", index.string(), ": '", shard,
                                       "' is not the name of a file beside it."));
    open_file(dir / shard);
  }
  for (const auto& [name, shard] : shard_of) {
    auto found = tensors_.find(name);
    if (found == tensors_.end() || files_[found->second.file].path.filename() != shard)
      throw std::invalid_argument(text("[weights] ", index.string(), " places tensor ", name,
                                       " in ", shard, ", which lacks it."));
  }
}

const WeightStore::Entry& WeightStore::entry(const std::string& name) const {
  auto found = tensors_.find(name);
  if (found == tensors_.end())
    throw std::invalid_argument(
        text("[weights] tensor ", name, " is missing in ", dir_.string(), "."));
  return found->second;
}

const std::vector<int64_t>& WeightStore::shape(const std::string& name) const {
  return entry(name).info.shape;
}
StoredDtype WeightStore::dtype(const std::string& name) const { return entry(name).info.dtype; }

void WeightStore::check_shape(const Entry& entry, const std::vector<int64_t>& expected) const {
  if (entry.info.shape != expected)
    throw std::invalid_argument(text(
        "[weights] tensor ", entry.info.name, " in ", files_[entry.file].path.string(),
        " must have shape ", shape_text(expected), " but has ", shape_text(entry.info.shape), "."));
}

void WeightStore::read_into(const Entry& entry, std::byte* destination) {
  const File& file = files_[entry.file];
  for (uint64_t done = 0; done < entry.info.nbytes;) {
    const auto wanted = static_cast<size_t>(std::min(kReadChunk, entry.info.nbytes - done));
    const ssize_t got = ::pread(file.descriptor, destination + done, wanted,
                                static_cast<off_t>(entry.info.offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0)
      throw std::runtime_error(
          text("[weights] reading tensor ", entry.info.name, " from ", file.path.string(),
               " failed: ", got < 0 ? std::strerror(errno) : "the file became shorter", "."));
    done += static_cast<uint64_t>(got);
    done_bytes_ += static_cast<uint64_t>(got);
    if (progress_) progress_(done_bytes_, total_bytes_);
  }
}

mx::array WeightStore::finish(mx::array array, std::optional<mx::Dtype> dtype) {
  const bool is_floating = mx::issubdtype(array.dtype(), mx::floating);
  if (!dtype || !is_floating || array.dtype() == *dtype) return array;
  mx::array converted = mx::astype(array, *dtype);
  converted.eval();
  converted.detach();
  return converted;
}

mx::array WeightStore::take(const std::string& name, const std::vector<int64_t>& shape,
                            std::optional<mx::Dtype> dtype) {
  const Entry& tensor = entry(name);
  check_shape(tensor, shape);
  mx::array array = uninitialized(mlx_shape(shape, name), mlx_dtype(tensor.info.dtype));
  read_into(tensor, array.data<std::byte>());
  tensors_.erase(name);
  return finish(std::move(array), dtype);
}

mx::array WeightStore::take_fused(std::span<const std::string> names, std::span<const int64_t> rows,
                                  int64_t columns, std::optional<mx::Dtype> dtype) {
  const StoredDtype stored = entry(names.front()).info.dtype;
  int64_t total_rows = 0;
  for (size_t i = 0; i < names.size(); ++i) {
    const Entry& tensor = entry(names[i]);
    check_shape(tensor, {rows[i], columns});
    if (tensor.info.dtype != stored)
      throw std::invalid_argument(text("[weights] tensors ", names.front(), " and ", names[i],
                                       " must have the same dtype but have ", name_of(stored),
                                       " and ", name_of(tensor.info.dtype), "."));
    total_rows += rows[i];
  }
  mx::array array =
      uninitialized(mlx_shape({total_rows, columns}, names.front()), mlx_dtype(stored));
  std::byte* destination = array.data<std::byte>();
  for (const auto& name : names) {
    const Entry& tensor = entry(name);
    read_into(tensor, destination);
    destination += tensor.info.nbytes;
    tensors_.erase(name);
  }
  return finish(std::move(array), dtype);
}

void WeightStore::expect_empty() const {
  if (tensors_.empty()) return;
  std::vector<std::string> names;
  for (const auto& [name, unused] : tensors_) {
    if (names.size() == 10) break;
    names.push_back(name);
  }
  throw std::invalid_argument(text("[weights] ", dir_.string(), " holds ", tensors_.size(),
                                   " tensors that this architecture does not have: ", join(names),
                                   tensors_.size() > names.size() ? ", ..." : "", "."));
}

}  // namespace vllm_metal
