// SPDX-License-Identifier: Apache-2.0
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <filesystem>
#include <variant>

#include "bindings.h"
#include "files/gguf_blocks.h"
#include "files/gguf_import.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace vllm_metal {

namespace {

nb::object to_python(const GgufValue& value) {
  return std::visit(
      [](const auto& held) -> nb::object {
        using Held = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<Held, GgufArray>) {
          return std::visit([](const auto& values) { return nb::cast(values); }, held);
        } else {
          return nb::cast(held);
        }
      },
      value);
}

nb::dict metadata_dict(const GgufImport& import) {
  nb::dict metadata;
  for (const auto& [key, value] : import.header().metadata)
    metadata[key.c_str()] = to_python(value);
  return metadata;
}

nb::dict model_dict(const GgufImport& import) {
  const LlamaHyperparameters& model = import.model();
  nb::dict result;
  result["vocab_size"] = model.vocab_size;
  result["hidden_size"] = model.hidden_size;
  result["intermediate_size"] = model.intermediate_size;
  result["num_hidden_layers"] = model.num_hidden_layers;
  result["num_attention_heads"] = model.num_attention_heads;
  result["num_key_value_heads"] = model.num_key_value_heads;
  result["head_dim"] = model.head_dim;
  result["max_position_embeddings"] = model.max_position_embeddings;
  result["rms_norm_eps"] = model.rms_norm_eps;
  result["rope_theta"] = model.rope_theta;
  return result;
}

nb::dict linear_bits_dict(const GgufImport& import) {
  nb::dict bits;
  for (const ImportedTensor& tensor : import.tensors()) {
    if (tensor.source.shape.size() == 2) bits[tensor.module.c_str()] = tensor.bits();
  }
  return bits;
}

std::vector<std::string> output_names(const GgufImport& import) {
  std::vector<std::string> names;
  for (const ImportedTensor& tensor : import.tensors()) {
    for (const TensorInfo& output : tensor.outputs()) names.push_back(output.name);
  }
  return names;
}

void write(const GgufImport& import, const std::filesystem::path& path, nb::object callback) {
  // Called without the GIL. Also lets Ctrl-C stop the import between two tensors.
  auto progress = [&callback](uint64_t done, uint64_t total) {
    nb::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (!callback.is_none()) callback(done, total);
  };
  nb::gil_scoped_release release;
  import.write(path, progress);
}

}  // namespace

void bind_files(nb::module_& module) {
  nb::class_<GgufImport>(module, "GgufImport",
                         "A GGUF file of a llama model on its way into MLX's community format.")
      .def(nb::init<const std::filesystem::path&>(), "path"_a,
           "Read and check everything but the tensors' data. ValueError names the file and what "
           "is wrong with it or not supported.")
      .def_prop_ro("metadata", &metadata_dict, "Metadata values by key; arrays are lists.")
      .def_prop_ro("model", &model_dict,
                   "Hyperparameters under the names of Hugging Face's LlamaConfig.")
      .def_prop_ro("linear_bits", &linear_bits_dict,
                   "Bits of the weight of every embedding and linear layer; 0: not quantised.")
      .def_prop_ro("output_names", &output_names, "Names of the tensors that write() stores.")
      .def_prop_ro("output_bytes", &GgufImport::output_bytes, "Bytes of all tensors written.")
      .def("write", &write, "path"_a, "progress"_a = nb::none(),
           "Write the safetensors file `path`, which must not exist, and call "
           "progress(done, total) in bytes after each tensor. Leaves no file when it fails.");
  module.attr("GGML_GROUP_SIZE") = kGgmlGroupSize;
}

}  // namespace vllm_metal
