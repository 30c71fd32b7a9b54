// SPDX-License-Identifier: Apache-2.0
#include "weights/weight_store.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <utility>

#include "common/mlx_buffer.h"
#include "common/text.h"
#include "files/input_file.h"
#include "files/safetensors.h"
#include "files/utf8.h"

namespace vllm_metal {

namespace {

namespace fs = std::filesystem;

// Small enough to show progress, large enough for the disk.
constexpr uint64_t kReadChunk = uint64_t{16} << 20;
constexpr uint64_t kCompareChunk = uint64_t{1} << 20;  // what differs does so early

constexpr std::pair<StoredDtype, mx::Dtype> kDtypes[] = {
    {StoredDtype::kBool, mx::bool_},    {StoredDtype::kU8, mx::uint8},
    {StoredDtype::kI8, mx::int8},       {StoredDtype::kU16, mx::uint16},
    {StoredDtype::kI16, mx::int16},     {StoredDtype::kF16, mx::float16},
    {StoredDtype::kBF16, mx::bfloat16}, {StoredDtype::kU32, mx::uint32},
    {StoredDtype::kI32, mx::int32},     {StoredDtype::kF32, mx::float32},
    {StoredDtype::kU64, mx::uint64},    {StoredDtype::kI64, mx::int64},
    {StoredDtype::kF64, mx::float64},
};

mx::Dtype mlx_dtype(StoredDtype dtype) {
  for (const auto& [stored, mlx] : kDtypes)
    if (stored == dtype) return mlx;
  throw std::invalid_argument("[weights] unknown dtype.");
}

StoredDtype stored_dtype(mx::Dtype dtype) {
  for (const auto& [stored, mlx] : kDtypes)
    if (mlx == dtype) return stored;
  throw std::invalid_argument(
      text("dtype must be one that safetensors files have but is ", name_of(dtype), "."));
}

mx::Shape mlx_shape(const std::vector<int64_t>& shape, const std::string& name) {
  mx::Shape result;
  for (int64_t extent : shape) {
    if (extent > std::numeric_limits<int32_t>::max())
      throw std::invalid_argument(text("[weights] tensor ", printable(name), " has a dimension of ",
                                       extent, ", more than 2^31 - 1."));
    result.push_back(static_cast<int32_t>(extent));
  }
  return result;
}

std::string shape_text(const std::vector<int64_t>& shape) { return text("[", join(shape), "]"); }

}  // namespace

struct WeightStore::File {
  fs::path path;
  std::unique_ptr<InputFile> opened;  // null where somebody else reads the file
};

WeightStore::WeightStore(const fs::path& dir, LoadCallbacks callbacks)
    : dir_(dir), callbacks_(std::move(callbacks)) {
  const WeightFiles files = find_weight_files(dir);
  for (const fs::path& path : files.paths) {
    if (files.format == WeightFiles::Format::kSafetensors) {
      open_safetensors(path);
    } else {
      open_pickle(path);
    }
  }
  check_index(files);
}

WeightStore::~WeightStore() = default;

void WeightStore::open_safetensors(const fs::path& path) {
  // Kept open, so that the header and what it describes are of the same file.
  auto file = std::make_unique<InputFile>(path);
  SafetensorsHeader header = read_safetensors_header(*file);
  files_.push_back({path, std::move(file)});
  for (auto& info : header.tensors) add(std::move(info), std::nullopt);
}

void WeightStore::open_pickle(const fs::path& path) {
  if (!callbacks_.read_pickle)
    throw std::invalid_argument(text("[weights] ", path.string(), " needs torch to be read, which ",
                                     "is not here; convert it to safetensors."));
  if (!fs::exists(path))
    throw std::runtime_error(text("[weights] cannot open ", path.string(), ": it is not there."));
  files_.push_back({path, nullptr});
  for (auto& [name, view] : callbacks_.read_pickle(path)) {
    TensorInfo info{.name = name, .shape = view.shape};
    try {
      info.dtype = stored_dtype(view.dtype);
      info.nbytes = checked_nbytes(info.shape, info.dtype);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(
          text("[weights] tensor ", printable(name), " in ", path.string(), ": ", error.what()));
    }
    add(std::move(info), std::move(view));
  }
}

void WeightStore::add(TensorInfo info, std::optional<TensorView> view) {
  total_bytes_ += info.nbytes;
  const std::string name = info.name;
  const auto [position, inserted] =
      tensors_.try_emplace(name, Entry{std::move(info), files_.size() - 1, std::move(view)});
  if (!inserted)
    throw std::invalid_argument(text("[weights] tensor ", printable(name), " is in ",
                                     files_[position->second.file].path.string(), " and again in ",
                                     files_.back().path.string(), "."));
}

void WeightStore::check_index(const WeightFiles& files) const {
  for (const auto& [name, path] : files.places) {
    auto found = tensors_.find(name);
    if (found == tensors_.end() || files_[found->second.file].path != path)
      throw std::invalid_argument(text("[weights] ", files.index.string(), " places tensor ",
                                       printable(name), " in ", path.filename().string(),
                                       ", which lacks it."));
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
        "[weights] tensor ", printable(entry.info.name), " in ", files_[entry.file].path.string(),
        " must have shape ", shape_text(expected), " but has ", shape_text(entry.info.shape), "."));
}

void WeightStore::report(uint64_t bytes) {
  done_bytes_ += bytes;
  if (callbacks_.progress) callbacks_.progress(done_bytes_, total_bytes_);
}

bool WeightStore::are_equal(const std::string& first, const std::string& second) const {
  const Entry &a = entry(first), &b = entry(second);
  if (a.info.dtype != b.info.dtype || a.info.shape != b.info.shape) return false;
  std::vector<std::byte> of_a, of_b;
  for (uint64_t done = 0; done < a.info.nbytes; done += kCompareChunk) {
    const uint64_t count = std::min(kCompareChunk, a.info.nbytes - done);
    if (std::memcmp(peek(a, done, count, of_a), peek(b, done, count, of_b), count) != 0)
      return false;
  }
  return true;
}

const std::byte* WeightStore::peek(const Entry& entry, uint64_t offset, uint64_t count,
                                   std::vector<std::byte>& buffer) const {
  if (!entry.view) {
    buffer.resize(count);
    files_[entry.file].opened->read(entry.info.offset + offset, buffer);
    return buffer.data();
  }
  if (entry.view->is_row_contiguous())
    return static_cast<const std::byte*>(entry.view->data) + offset;
  if (buffer.empty()) {
    buffer.resize(entry.info.nbytes);
    copy_row_major(*entry.view, buffer.data());
  }
  return buffer.data() + offset;
}

void WeightStore::read_into(const std::string& name, std::byte* destination) {
  // Out of the map first: a tensor that lies in memory is let go of when it is copied.
  const Entry entry = std::move(tensors_.extract(name).mapped());
  if (entry.view) {
    copy_row_major(*entry.view, destination);
    report(entry.info.nbytes);
    return;
  }
  for (uint64_t done = 0; done < entry.info.nbytes;) {
    const uint64_t count = std::min(kReadChunk, entry.info.nbytes - done);
    try {
      files_[entry.file].opened->read(entry.info.offset + done, {destination + done, count});
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(
          text("[weights] tensor ", printable(entry.info.name), ": ", error.what()));
    }
    done += count;
    report(count);
  }
}

void WeightStore::check_floating(const Entry& entry) const {
  if (mx::issubdtype(mlx_dtype(entry.info.dtype), mx::floating)) return;
  throw std::invalid_argument(text(
      "[weights] tensor ", printable(entry.info.name), " in ", files_[entry.file].path.string(),
      " must have numbers of floating point but has ", name_of(entry.info.dtype), "."));
}

mx::array WeightStore::finish(mx::array array, std::optional<mx::Dtype> dtype) {
  if (!dtype || array.dtype() == *dtype) return array;
  // MLX has float64 on the CPU only.
  const mx::Device device =
      array.dtype() == mx::float64 ? mx::Device(mx::Device::cpu) : mx::default_device();
  mx::array converted = mx::astype(array, *dtype, device);
  converted.eval();
  converted.detach();
  return converted;
}

mx::array WeightStore::take(const std::string& name, const std::vector<int64_t>& shape,
                            std::optional<mx::Dtype> dtype) {
  const Entry& tensor = entry(name);
  check_shape(tensor, shape);
  if (dtype) check_floating(tensor);
  mx::array array = uninitialized(mlx_shape(shape, name), mlx_dtype(tensor.info.dtype));
  read_into(name, array.data<std::byte>());
  return finish(std::move(array), dtype);
}

mx::array WeightStore::take_fused(std::span<const std::string> names, std::span<const int64_t> rows,
                                  int64_t columns, std::optional<mx::Dtype> dtype) {
  const StoredDtype stored = entry(names.front()).info.dtype;
  int64_t total_rows = 0;
  for (size_t i = 0; i < names.size(); ++i) {
    const Entry& tensor = entry(names[i]);
    check_shape(tensor, {rows[i], columns});
    if (dtype) check_floating(tensor);
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
    const uint64_t nbytes = entry(name).info.nbytes;
    read_into(name, destination);
    destination += nbytes;
  }
  return finish(std::move(array), dtype);
}

void WeightStore::expect_empty() const {
  if (tensors_.empty()) return;
  std::vector<std::string> names;
  for (const auto& [name, unused] : tensors_) {
    if (names.size() == 10) break;
    names.push_back(printable(name));
  }
  throw std::invalid_argument(text("[weights] ", dir_.string(), " holds ", tensors_.size(),
                                   " tensors that this architecture does not have: ", join(names),
                                   tensors_.size() > names.size() ? ", ..." : "", "."));
}

}  // namespace vllm_metal
