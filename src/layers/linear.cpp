// SPDX-License-Identifier: Apache-2.0
#include "layers/linear.h"

#include <stdexcept>

#include "common/text.h"
#include "kernels/device_kernels.h"

namespace vllm_metal {

namespace {

// What must be equal for two projections to be one matrix.
struct MatrixForm {
  std::optional<QuantizationSpec> quantization;
  StoredDtype dtype;         // of the weight
  StoredDtype scales_dtype;  // where quantised
  bool has_bias;
  bool operator==(const MatrixForm&) const = default;
};

MatrixForm form_of(const LoadContext& load, const std::string& name) {
  const auto spec = load.spec_of(name);
  const StoredDtype dtype = load.weights.dtype(name + ".weight");
  return {spec, dtype, spec ? load.weights.dtype(name + ".scales") : dtype,
          load.weights.contains(name + ".bias")};
}

std::vector<std::string> tensor_names(std::span<const Projection> projections, const char* suffix) {
  std::vector<std::string> names;
  for (const auto& projection : projections) names.push_back(projection.name + suffix);
  return names;
}

std::vector<int64_t> row_counts(std::span<const Projection> projections) {
  std::vector<int64_t> rows;
  for (const auto& projection : projections) rows.push_back(projection.out_features);
  return rows;
}

// Packed words and groups of a row; throws when a row does not divide into them.
std::pair<int64_t, int64_t> packed_columns(const std::string& name, const QuantizationSpec& spec,
                                           int in_features) {
  const int64_t bits_per_row = int64_t{in_features} * spec.bits;
  if (in_features % spec.group_size != 0 || bits_per_row % 32 != 0)
    throw std::invalid_argument(text("[weights] ", name, ": ", in_features,
                                     " input features do not divide into groups of ",
                                     spec.group_size, " with ", spec.bits, " bits."));
  return {bits_per_row / 32, in_features / spec.group_size};
}

// `matrix` where it streams fastest.
mx::array placed(LoadContext& load, const mx::array& matrix) {
  return use_cpu_kernels() ? load.arena.copy(matrix) : matrix;
}

}  // namespace

WeightMatrix load_weight_matrix(LoadContext& load, std::span<const Projection> projections,
                                int in_features) {
  const std::string& first = projections.front().name;
  const auto rows = row_counts(projections);
  const auto spec = load.spec_of(first);
  auto take = [&](const char* suffix, int64_t columns, std::optional<mx::Dtype> dtype) {
    return load.weights.take_fused(tensor_names(projections, suffix), rows, columns, dtype);
  };
  if (!spec) return placed(load, take(".weight", in_features, load.dtype));
  const auto [words, groups] = packed_columns(first, *spec, in_features);
  QuantizedMatrix matrix{take(".weight", words, std::nullopt),
                         take(".scales", groups, std::nullopt),
                         take(".biases", groups, std::nullopt), spec->group_size, spec->bits};
  if (matrix.weight.dtype() != mx::uint32)
    throw std::invalid_argument(text("[weights] ", first, ".weight is quantised and must be U32."));
  for (const mx::array& part : {matrix.scales, matrix.biases}) {
    if (!mx::issubdtype(part.dtype(), mx::floating))
      throw std::invalid_argument(text("[weights] ", first,
                                       ".scales and .biases must have numbers ",
                                       "of floating point but have ", part.dtype(), "."));
  }
  std::optional<PackedMatrix> packed = pack_for_device(matrix);
  if (!packed) return matrix;
  packed->strips.eval();
  packed->strips = placed(load, packed->strips);  // the matrix's memory is given back
  return *packed;
}

Linear::Part Linear::load_part(LoadContext& load, std::span<const Projection> projections,
                               int in_features) {
  const bool has_bias = load.weights.contains(projections.front().name + ".bias");
  Part part{load_weight_matrix(load, projections, in_features), std::nullopt};
  if (!has_bias) return part;
  std::vector<mx::array> biases;
  for (const auto& projection : projections)
    biases.push_back(
        load.weights.take(projection.name + ".bias", {projection.out_features}, load.dtype));
  part.bias = biases.size() == 1 ? biases.front() : mx::concatenate(biases, 0);
  part.bias->eval();
  part.bias->detach();
  return part;
}

Linear Linear::load(LoadContext& load, std::span<const Projection> projections, int in_features) {
  bool same_form = true;
  for (const auto& projection : projections)
    same_form =
        same_form && form_of(load, projection.name) == form_of(load, projections.front().name);
  Linear linear;
  if (same_form) {
    linear.parts_.push_back(load_part(load, projections, in_features));
  } else {
    for (const auto& projection : projections)
      linear.parts_.push_back(load_part(load, std::span(&projection, 1), in_features));
  }
  return linear;
}

Linear Linear::load(LoadContext& load_context, const std::string& name, int in_features,
                    int out_features) {
  const Projection projection{name, out_features};
  return load(load_context, std::span(&projection, 1), in_features);
}

Linear::Linear(WeightMatrix weight, std::optional<mx::array> bias) {
  parts_.push_back({std::move(weight), std::move(bias)});
}

mx::array Linear::operator()(const mx::array& x) const {
  auto product = [&](const Part& part) {
    if (const auto* packed = std::get_if<PackedMatrix>(&part.weight))
      return packed_linear(x, *packed, part.bias);
    if (const auto* quantized = std::get_if<QuantizedMatrix>(&part.weight))
      return quantized_linear(x, *quantized, part.bias);
    return linear(x, std::get<mx::array>(part.weight), part.bias);
  };
  if (parts_.size() == 1) return product(parts_.front());
  std::vector<mx::array> results;
  for (const auto& part : parts_) results.push_back(product(part));
  return mx::concatenate(results, -1);
}

}  // namespace vllm_metal
