// SPDX-License-Identifier: Apache-2.0
#include "files/gguf_import.h"

#include <cassert>
#include <cstring>
#include <stdexcept>

#include "common/text.h"
#include "files/gguf_blocks.h"
#include "files/safetensors.h"

namespace vllm_metal {

namespace {

// Which row of the GGUF tensor holds row `row` of Hugging Face's order. Of each head, GGUF has
// the pairs (i, i + head_dim / 2) next to each other.
int64_t source_row(const ImportedTensor& tensor, int64_t row) {
  if (tensor.interleaved_heads == 0) return row;
  const int64_t head_dim = tensor.source.shape[0] / tensor.interleaved_heads;
  const int64_t in_head = row % head_dim;
  const int64_t half = in_head / (head_dim / 2);
  const int64_t pair = in_head % (head_dim / 2);
  return row - in_head + 2 * pair + half;
}

std::vector<std::byte> copy_rows(const ImportedTensor& tensor, std::span<const std::byte> source) {
  const int64_t rows = tensor.source.shape[0];
  const size_t row_bytes = source.size() / static_cast<size_t>(rows);
  std::vector<std::byte> out(source.size());
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(out.data() + static_cast<size_t>(row) * row_bytes,
                source.data() + static_cast<size_t>(source_row(tensor, row)) * row_bytes,
                row_bytes);
  }
  return out;
}

template <typename T>
std::span<T> row_of(std::vector<std::byte>& data, int64_t row, size_t columns) {
  return {reinterpret_cast<T*>(data.data()) + static_cast<size_t>(row) * columns, columns};
}

std::vector<std::vector<std::byte>> repack_rows(const ImportedTensor& tensor,
                                                std::span<const std::byte> source) {
  const auto infos = tensor.outputs();
  std::vector<std::vector<std::byte>> out;
  for (const TensorInfo& info : infos) out.emplace_back(info.nbytes);
  const int64_t rows = tensor.source.shape[0];
  const size_t row_bytes = tensor.source.row_bytes();
  const auto words = static_cast<size_t>(infos[0].shape[1]);
  const auto groups = static_cast<size_t>(infos[1].shape[1]);
  for (int64_t row = 0; row < rows; ++row) {
    auto from = static_cast<size_t>(source_row(tensor, row)) * row_bytes;
    repack_row(tensor.source.type, source.subspan(from, row_bytes),
               {.weight = row_of<uint32_t>(out[0], row, words),
                .scales = row_of<uint16_t>(out[1], row, groups),
                .biases = row_of<uint16_t>(out[2], row, groups)});
  }
  return out;
}

}  // namespace

std::vector<std::vector<std::byte>> convert_tensor(const ImportedTensor& tensor,
                                                   std::span<const std::byte> source) {
  assert(source.size() == tensor.source.nbytes);
  try {
    if (tensor.bits() != 0) return repack_rows(tensor, source);
    return {copy_rows(tensor, source)};
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(
        text("[import-gguf] tensor \"", tensor.source.name, "\": ", error.what()));
  }
}

GgufImport::GgufImport(const std::filesystem::path& path)
    : file_(path),
      header_(read_gguf_header(file_)),
      model_(read_llama_hyperparameters(header_)),
      tensors_(plan_import(header_, model_)) {}

uint64_t GgufImport::output_bytes() const {
  uint64_t bytes = 0;
  for (const ImportedTensor& tensor : tensors_) {
    for (const TensorInfo& output : tensor.outputs()) bytes += output.nbytes;
  }
  return bytes;
}

void GgufImport::write(const std::filesystem::path& path, const Progress& progress) const {
  std::vector<TensorInfo> outputs;
  uint64_t total = 0;
  for (const ImportedTensor& tensor : tensors_) {
    for (TensorInfo& output : tensor.outputs()) outputs.push_back(std::move(output));
    total += tensor.source.nbytes;
  }
  SafetensorsWriter writer(path, std::move(outputs), {{"format", "mlx"}});
  uint64_t done = 0;
  std::vector<std::byte> source;
  for (const ImportedTensor& tensor : tensors_) {
    source.resize(tensor.source.nbytes);
    file_.read(tensor.source.offset, source);
    for (const auto& output : convert_tensor(tensor, source)) writer.write(output);
    done += tensor.source.nbytes;
    if (progress) progress(done, total);
  }
  writer.finish();
}

}  // namespace vllm_metal
