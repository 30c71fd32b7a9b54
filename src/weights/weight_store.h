// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/mlx.h"
#include "files/tensor_info.h"
#include "interop/dlpack.h"
#include "weights/weight_files.h"

namespace vllm_metal {

// A tensor of a file that somebody else reads.
struct NamedTensor {
  std::string name;
  TensorView view;
};

// What loading tells its caller and asks of it. Called on the thread that loads.
struct LoadCallbacks {
  // Told, while weights are read, the bytes read so far and those of all files.
  std::function<void(uint64_t done_bytes, uint64_t total_bytes)> progress = {};
  // Reads a file that torch.save wrote, best without its data, which is mapped and read when it is
  // taken. Throws what is wrong, naming the file.
  std::function<std::vector<NamedTensor>(const std::filesystem::path& path)> read_pickle = {};
};

// The tensors of a model's files by name. Each is read from disk straight into the memory in
// which it stays, when it is taken; several can be taken as one, rows below rows, so that
// fused weights never exist twice. What nobody took is an error at the end.
//
// All methods throw std::invalid_argument naming tensor and file for what the files hold, and
// std::runtime_error when they cannot be read.
class WeightStore {
 public:
  // `dir` holds the files that find_weight_files finds. Those of torch.save need `read_pickle`.
  explicit WeightStore(const std::filesystem::path& dir, LoadCallbacks callbacks = {});
  ~WeightStore();
  WeightStore(const WeightStore&) = delete;
  WeightStore& operator=(const WeightStore&) = delete;

  bool contains(const std::string& name) const { return tensors_.contains(name); }
  const std::vector<int64_t>& shape(const std::string& name) const;
  StoredDtype dtype(const std::string& name) const;
  uint64_t total_bytes() const { return total_bytes_; }

  // The tensor, which must have this shape. With a `dtype` it must be of floating point and is
  // converted to it (tensor by tensor, so that at most one exists twice).
  mx::array take(const std::string& name, const std::vector<int64_t>& shape,
                 std::optional<mx::Dtype> dtype = std::nullopt);

  // Matrices of equal dtype and row length as one, in order. `rows[i]` are the rows of `names[i]`.
  mx::array take_fused(std::span<const std::string> names, std::span<const int64_t> rows,
                       int64_t columns, std::optional<mx::Dtype> dtype = std::nullopt);

  // Whether two tensors are the same: shape, dtype and all bytes.
  bool are_equal(const std::string& first, const std::string& second) const;

  // A tensor that the model does not need; no error if absent.
  void skip(const std::string& name) { tensors_.erase(name); }

  // Throws when a tensor was not taken, naming up to ten.
  void expect_empty() const;

 private:
  struct Entry {
    TensorInfo info;
    size_t file;
    std::optional<TensorView> view;  // where it lies, if not at the file's offset
  };
  struct File;

  void open_safetensors(const std::filesystem::path& path);
  void open_pickle(const std::filesystem::path& path);
  void add(TensorInfo info, std::optional<TensorView> view);  // of the last file
  void check_index(const WeightFiles& files) const;
  const Entry& entry(const std::string& name) const;
  void check_shape(const Entry& entry, const std::vector<int64_t>& expected) const;
  void check_floating(const Entry& entry) const;
  // `count` bytes of the tensor from `offset` on, where they lie or read into `buffer`.
  const std::byte* peek(const Entry& entry, uint64_t offset, uint64_t count,
                        std::vector<std::byte>& buffer) const;
  // The tensor's bytes, after which its entry is gone.
  void read_into(const std::string& name, std::byte* destination);
  void report(uint64_t bytes);
  mx::array finish(mx::array array, std::optional<mx::Dtype> dtype);

  std::filesystem::path dir_;
  LoadCallbacks callbacks_;
  std::vector<File> files_;
  std::map<std::string, Entry> tensors_;
  uint64_t total_bytes_ = 0;
  uint64_t done_bytes_ = 0;
};

}  // namespace vllm_metal
