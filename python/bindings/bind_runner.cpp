// SPDX-License-Identifier: Apache-2.0
#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "models/registry.h"
#include "runner/model_runner.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace vllm_metal {

namespace {

using PythonProgress = std::function<void(uint64_t, uint64_t)>;
using NewRequestTuple = std::tuple<std::string, std::vector<int32_t>, int32_t, SamplingParams>;
using UpdateTuple = std::tuple<std::string, std::vector<int32_t>>;
using ScheduledTuple = std::tuple<std::string, int32_t, int32_t>;

void init_runner(ModelRunner* self, const std::string& model_dir, const std::string& config_json,
                 const std::string& dtype, const std::optional<PythonProgress>& progress) {
  ModelRunnerOptions options{model_dir, Json::parse(config_json), parse_dtype(dtype), {}};
  if (progress)
    options.progress = [&progress](uint64_t done, uint64_t total) {
      nb::gil_scoped_acquire gil;
      (*progress)(done, total);
    };
  nb::gil_scoped_release release;
  new (self) ModelRunner(std::move(options));
}

StepOutput run_step(ModelRunner& runner, std::vector<std::string> finished,
                    std::vector<std::string> preempted, std::vector<NewRequestTuple> new_requests,
                    std::vector<UpdateTuple> updates, std::vector<ScheduledTuple> scheduled) {
  nb::gil_scoped_release release;
  StepInput input{.finished = std::move(finished), .preempted = std::move(preempted)};
  for (auto& [id, token_ids, num_output_tokens, sampling] : new_requests)
    input.new_requests.push_back(
        {std::move(id), std::move(token_ids), sampling, num_output_tokens});
  for (auto& [id, token_ids] : updates)
    input.updates.push_back({std::move(id), std::move(token_ids)});
  for (auto& [id, computed, count] : scheduled)
    input.scheduled.push_back({std::move(id), computed, count});
  return runner.step(input);
}

// Per scheduled request the token drawn, as vLLM wants it: a list of none or one.
nb::list token_lists(const StepOutput& output) {
  nb::list rows;
  for (int32_t token : output.token_ids) {
    nb::list row;
    if (token >= 0) row.append(token);
    rows.append(row);
  }
  return rows;
}

nb::list failed_rows(const StepOutput& output) {
  nb::list rows;
  for (size_t i = 0; i < output.token_ids.size(); ++i)
    if (output.token_ids[i] == SampleOutput::kFailed) rows.append(i);
  return rows;
}

// A numpy array of its own memory.
template <typename T>
nb::object to_numpy(const std::vector<T>& values, std::initializer_list<size_t> shape) {
  auto* copy = new std::vector<T>(values);
  nb::capsule owner(copy, [](void* data) noexcept { delete static_cast<std::vector<T>*>(data); });
  return nb::cast(nb::ndarray<nb::numpy, T>(copy->data(), shape, owner));
}

nb::object logprobs_tuple(const StepOutput& output) {
  const Logprobs& logprobs = output.logprobs;
  if (logprobs.width == 0) return nb::none();
  const size_t rows = logprobs.ranks.size(), width = static_cast<size_t>(logprobs.width);
  nb::list offsets;  // rows before each scheduled request
  size_t row = 0;
  offsets.append(row);
  for (int32_t token : output.token_ids) {
    if (token != StepOutput::kNoToken) ++row;  // failed rows are padding
    offsets.append(row);
  }
  return nb::make_tuple(to_numpy(logprobs.token_ids, {rows, width}),
                        to_numpy(logprobs.values, {rows, width}), to_numpy(logprobs.ranks, {rows}),
                        offsets);
}

nb::object last_logits(const ModelRunner& runner) {
  const auto& logits = runner.last_logits();
  if (!logits) return nb::none();
  const float* data = logits->data<float>();
  return to_numpy(std::vector<float>(data, data + logits->size()),
                  {static_cast<size_t>(logits->shape(0)), static_cast<size_t>(logits->shape(1))});
}

void bind_sampling_params(nb::module_& module) {
  nb::class_<SamplingParams>(module, "SamplingParams", "How one request's tokens are drawn.")
      .def(
          "__init__",
          [](SamplingParams* self, float temperature, float top_p, int top_k,
             std::optional<int64_t> seed, std::optional<int> num_logprobs) {
            const SamplingParams params{temperature, top_p, top_k, seed, num_logprobs};
            params.validate();
            new (self) SamplingParams(params);
          },
          nb::kw_only(), "temperature"_a = 1.0f, "top_p"_a = 1.0f, "top_k"_a = 0,
          "seed"_a = nb::none(), "num_logprobs"_a = nb::none());
}

void bind_step_output(nb::module_& module) {
  nb::class_<StepOutput>(module, "StepOutput", "What a step drew.")
      .def_prop_ro("token_ids", &token_lists,
                   "For each scheduled request a list of none or one token.")
      .def_prop_ro("failed", &failed_rows, "Indexes of scheduled requests whose logits held NaN.")
      .def_prop_ro("logprobs", &logprobs_tuple,
                   "None, or (token_ids [n, k], logprobs [n, k], ranks [n], offsets): one row a "
                   "token drawn, "
                   "column 0 the token itself; offsets[i] rows come before scheduled request i.");
}

}  // namespace

void bind_runner(nb::module_& module) {
  bind_sampling_params(module);
  bind_step_output(module);
  module.def("supported_architectures", &supported_architectures,
             "Names that config.json may have in `architectures`.");
  nb::class_<ModelRunner>(module, "ModelRunner", "A loaded model and its live requests.")
      .def("__init__", &init_runner, "model_dir"_a, "config_json"_a, "dtype"_a, nb::kw_only(),
           "progress"_a = nb::none(),
           "Load a model. dtype: float32, float16 or bfloat16. progress(done_bytes, total_bytes) "
           "is called while reading.")
      .def_prop_ro("num_layers",
                   [](const ModelRunner& self) { return self.kv_cache_spec().num_layers; })
      .def_prop_ro("num_kv_heads",
                   [](const ModelRunner& self) { return self.kv_cache_spec().num_kv_heads; })
      .def_prop_ro("head_dim",
                   [](const ModelRunner& self) { return self.kv_cache_spec().head_dim; })
      .def_prop_ro("vocab_size", [](const ModelRunner& self) { return self.config().vocab_size; })
      .def_prop_ro("weight_bytes", &ModelRunner::weight_bytes)
      .def_prop_ro("kv_cache_bytes", &ModelRunner::kv_cache_bytes)
      .def_prop_ro("last_step_nodes", &ModelRunner::last_step_nodes,
                   "Graph nodes of the last step, if counted.")
      .def("keep_logits", &ModelRunner::keep_logits, "enabled"_a)
      .def_prop_ro(
          "last_logits", &last_logits,
          "Logits of the rows the last step drew from, float32 [n, vocab_size]; None unless kept.")
      .def("count_nodes", &ModelRunner::count_nodes, "enabled"_a)
      .def("initialize_kv_cache", &ModelRunner::initialize_kv_cache, "num_tokens"_a, "block_size"_a,
           "Set how many tokens live requests may keep, in blocks of block_size.")
      .def("step", &run_step, nb::kw_only(), "finished"_a, "preempted"_a, "new_requests"_a,
           "updates"_a, "scheduled"_a,
           "Compute one step and draw tokens; the GIL is released meanwhile.\n\n"
           "finished, preempted: request ids. new_requests: (id, token_ids, how many of them are "
           "output, SamplingParams). "
           "updates: (id, all token_ids). scheduled: (id, num_computed_tokens, "
           "num_scheduled_tokens).");
  module.def(
      "memory_stats",
      [] {
        nb::dict stats;
        stats["active"] = mx::get_active_memory();
        stats["peak"] = mx::get_peak_memory();
        stats["cache"] = mx::get_cache_memory();
        return stats;
      },
      "MLX's memory in bytes: active, peak, cache.");
}

}  // namespace vllm_metal
