// SPDX-License-Identifier: Apache-2.0
#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "arrays.h"
#include "bindings.h"
#include "cache/paged_kv_cache.h"
#include "common/mlx_buffer.h"
#include "models/registry.h"
#include "runner/model_runner.h"
#include "tensors.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace vllm_metal {

namespace {

using PythonProgress = std::optional<std::function<void(uint64_t, uint64_t)>>;
using PythonReader = std::optional<nb::typed<nb::callable, nb::dict(std::string)>>;
using NewRequestTuple = std::tuple<std::string, std::vector<int32_t>, int32_t, SamplingParams>;
using UpdateTuple = std::tuple<std::string, std::vector<int32_t>>;
using ScheduledTuple = std::tuple<std::string, int32_t, int32_t>;
using BlockTuple = std::tuple<std::string, std::vector<int32_t>, bool>;
using CopyTuple = std::tuple<int32_t, int32_t>;
using Ids = std::vector<std::string>;
using Requests = std::vector<NewRequestTuple>;
using Updates = std::vector<UpdateTuple>;
using Scheduled = std::vector<ScheduledTuple>;
using Blocks = std::vector<BlockTuple>;
using Copies = std::vector<CopyTuple>;

// Both arguments have to outlive it.
LoadCallbacks load_callbacks(const PythonProgress& progress, const PythonReader& reader) {
  LoadCallbacks callbacks;
  if (progress)
    callbacks.progress = [&progress](uint64_t done, uint64_t total) {
      nb::gil_scoped_acquire gil;
      (*progress)(done, total);
    };
  if (reader)
    callbacks.read_pickle = [&reader](const std::filesystem::path& path) {
      return read_pickle(*reader, path);
    };
  return callbacks;
}

void check_weight_files(const std::string& model_dir, const PythonReader& reader) {
  nb::gil_scoped_release release;
  const WeightStore store(model_dir, load_callbacks({}, reader));
}

void load_weights(ModelRunner& runner, const PythonProgress& progress, const PythonReader& reader) {
  nb::gil_scoped_release release;
  runner.load_weights(load_callbacks(progress, reader));
}

// Its end waits for the executor, which may be waiting for the GIL to log a line.
std::shared_ptr<ModelRunner> make_runner(const std::string& model_dir,
                                         const std::string& config_json, const std::string& dtype,
                                         const PythonProgress& progress, const PythonReader& reader,
                                         const std::string& logprobs_mode,
                                         std::optional<uint64_t> seed,
                                         std::vector<int32_t> reasoning_start_token_ids,
                                         std::vector<int32_t> reasoning_end_token_ids,
                                         std::vector<int32_t> natural_reasoning_end_token_ids) {
  ModelRunnerOptions options{
      .model_dir = model_dir,
      .config = Json::parse(config_json),
      .dtype = parse_dtype(dtype),
      .sampler = {.logprobs_mode = parse_logprobs_mode(logprobs_mode),
                  .seed = seed,
                  .reasoning_start_token_ids = std::move(reasoning_start_token_ids),
                  .reasoning_end_token_ids = std::move(reasoning_end_token_ids),
                  .natural_reasoning_end_token_ids = std::move(natural_reasoning_end_token_ids)}};
  options.callbacks = load_callbacks(progress, reader);
  nb::gil_scoped_release release;
  return {new ModelRunner(std::move(options)), [](ModelRunner* runner) {
            const nb::gil_scoped_release unlocked;
            delete runner;
          }};
}

std::vector<NewRequest> to_requests(Requests tuples) {
  std::vector<NewRequest> requests;
  requests.reserve(tuples.size());
  for (auto& [id, token_ids, num_output_tokens, sampling] : tuples)
    requests.push_back(
        {std::move(id), std::move(token_ids), std::move(sampling), num_output_tokens});
  return requests;
}

StepInput to_step_input(Ids finished, Ids preempted, Requests new_requests, Requests sessions,
                        Updates updates, Scheduled scheduled, Blocks blocks, const Copies& copies,
                        PrefixCacheInput prefix_cache) {
  StepInput input{.finished = std::move(finished),
                  .new_requests = to_requests(std::move(new_requests)),
                  .sessions = to_requests(std::move(sessions)),
                  .updates = {},
                  .preempted = std::move(preempted),
                  .scheduled = {},
                  .blocks = {},
                  .block_copies = {},
                  .prefix_cache = std::move(prefix_cache)};
  for (auto& [id, token_ids] : updates)
    input.updates.push_back({std::move(id), std::move(token_ids)});
  for (auto& [id, computed, count] : scheduled)
    input.scheduled.push_back({std::move(id), computed, count});
  for (auto& [id, block_ids, replaces] : blocks)
    input.blocks.push_back({std::move(id), std::move(block_ids), replaces});
  for (const auto& [source, target] : copies) input.block_copies.push_back({source, target});
  return input;
}

// Calls `run` on the runner with the step that the arguments describe, without the GIL.
template <auto run>
auto with_step_input(ModelRunner& runner, Ids finished, Ids preempted, Requests new_requests,
                     Requests sessions, Updates updates, Scheduled scheduled, Blocks blocks,
                     const Copies& block_copies, std::optional<PrefixCacheInput> prefix_cache) {
  nb::gil_scoped_release release;
  return (runner.*run)(to_step_input(
      std::move(finished), std::move(preempted), std::move(new_requests), std::move(sessions),
      std::move(updates), std::move(scheduled), std::move(blocks), block_copies,
      std::move(prefix_cache).value_or(PrefixCacheInput{})));
}

// Binds a method that takes a StepInput.
template <auto run>
void def_step(nb::class_<ModelRunner>& runner, const char* name, const char* documentation) {
  runner.def(name, &with_step_input<run>, nb::kw_only(), "finished"_a = Ids(),
             "preempted"_a = Ids(), "new_requests"_a = Requests(), "sessions"_a = Requests(),
             "updates"_a = Updates(), "scheduled"_a = Scheduled(), "blocks"_a = Blocks(),
             "block_copies"_a = Copies(), "prefix_cache"_a = nb::none(), documentation);
}

PendingOutput draw(ModelRunner& runner, std::vector<std::string> grammar_ids,
                   std::optional<Bitmask> bitmask,
                   const std::vector<std::tuple<size_t, int32_t>>& given) {
  DrawInput input{.grammar_ids = std::move(grammar_ids)};
  if (bitmask) input.bitmask.assign(bitmask->data(), bitmask->data() + bitmask->size());
  for (const auto& [scheduled_index, token_id] : given)
    input.given.push_back({scheduled_index, token_id});
  nb::gil_scoped_release release;
  return runner.draw(input);
}

std::shared_ptr<StepOutput> wait(const PendingOutput& output) {
  nb::gil_scoped_release release;
  return output.get();
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

nb::object logprobs_tuple(const StepOutput& output) {
  if (output.logprobs.width == 0) return nb::none();
  nb::list offsets;  // rows before each scheduled request
  size_t row = 0;
  offsets.append(row);
  for (int32_t token : output.token_ids) {
    if (token != StepOutput::kNoToken) ++row;  // failed rows are padding
    offsets.append(row);
  }
  return score_arrays(output.logprobs) + nb::make_tuple(offsets);
}

nb::list prompt_logprobs_list(const StepOutput& output) {
  nb::list prompts;
  for (const auto& [scheduled_index, scores] : output.prompt_logprobs) {
    const Logprobs& logprobs = scores->logprobs();
    const auto& token_id_scores = scores->token_id_scores();
    nb::object most_likely = nb::none(), of_token_ids = nb::none();
    if (logprobs.width > 0) most_likely = score_arrays(logprobs);
    if (!token_id_scores.empty()) {
      const auto width = static_cast<size_t>(scores->params().prompt_logprob_ids_per_row);
      of_token_ids = to_numpy(token_id_scores, {token_id_scores.size() / width, width});
    }
    prompts.append(nb::make_tuple(scheduled_index, most_likely, of_token_ids));
  }
  return prompts;
}

nb::object logits(ModelRunner& runner) {
  const mx::array rows = [&] {
    nb::gil_scoped_release release;
    return runner.logits();
  }();
  return to_python(rows);
}

nb::object last_logits(ModelRunner& runner) {
  const std::optional<mx::array> rows = [&] {
    nb::gil_scoped_release release;
    return runner.last_logits();
  }();
  if (!rows) return nb::none();
  return nb::module_::import_("numpy").attr("asarray")(to_python(*rows));
}

void bind_step_output(nb::module_& module) {
  nb::class_<StepOutput>(module, "StepOutput", "What a step drew.")
      .def_prop_ro("token_ids", &token_lists,
                   "For each scheduled request a list of none or one token.")
      .def_prop_ro("failed", &failed_rows, "Indexes of scheduled requests whose logits held NaN.")
      .def_prop_ro("logprobs", &logprobs_tuple,
                   "None, or (token_ids [n, k], logprobs [n, k], ranks [n], offsets): one row a "
                   "token drawn, "
                   "column 0 the token itself; offsets[i] rows come before scheduled request i.")
      .def_prop_ro("prompt_logprobs", &prompt_logprobs_list,
                   "Of each prompt that this step completed: (index of the scheduled request, "
                   "None or (token_ids, logprobs, ranks) with a row a token from the second on, "
                   "None or the scores of prompt_logprob_token_ids).")
      .def_ro("idle_ms", &StepOutput::idle_ms,
              "Nothing to compute between the step before and the launch of this one.")
      .def_ro("forward_ms", &StepOutput::forward_ms, "Until the logits were there.")
      .def_ro("sampling_ms", &StepOutput::sampling_ms);
  nb::class_<PendingOutput>(module, "PendingOutput", "The output of a step that may still run.")
      .def("wait", &wait, "Wait for the StepOutput; raises what went wrong in drawing.");
}

}  // namespace

void bind_runner(nb::module_& module) {
  bind_step_output(module);
  nb::list block_sizes;
  for (int size : PagedKVCache::kBlockSizes) block_sizes.append(size);
  module.attr("PAGED_BLOCK_SIZES") = nb::tuple(block_sizes);
  module.def("supported_architectures", &supported_architectures,
             "Names that config.json may have in `architectures`.");
  module.def(
      "check_weight_files", &check_weight_files, "model_dir"_a, nb::kw_only(),
      "read_pickle"_a = nb::none(),
      "Read the headers of a model's weight files, none of its tensors. ValueError names the file "
      "and what is wrong with it; RuntimeError when one cannot be read.");
  nb::class_<ModelRunner> runner(module, "ModelRunner", "A loaded model and its live requests.");
  runner
      .def(nb::new_(&make_runner), "model_dir"_a, "config_json"_a, "dtype"_a, nb::kw_only(),
           "progress"_a = nb::none(), "read_pickle"_a = nb::none(),
           "logprobs_mode"_a = "raw_logprobs", "seed"_a = nb::none(),
           "reasoning_start_token_ids"_a = std::vector<int32_t>(),
           "reasoning_end_token_ids"_a = std::vector<int32_t>(),
           "natural_reasoning_end_token_ids"_a = std::vector<int32_t>(),
           "Load a model. dtype: float32, float16 or bfloat16. progress(done_bytes, total_bytes) "
           "is called while reading. read_pickle(path) returns the tensors by name of a file that "
           "torch.save wrote; without it such files are refused. Of seed the seeds of requests "
           "without one are made. The reasoning ids mark what a thinking_token_budget limits.")
      .def_prop_ro("num_layers",
                   [](const ModelRunner& self) { return self.kv_cache_spec().num_layers; })
      .def_prop_ro("num_kv_heads",
                   [](const ModelRunner& self) { return self.kv_cache_spec().num_kv_heads; })
      .def_prop_ro("head_dim",
                   [](const ModelRunner& self) { return self.kv_cache_spec().head_dim; })
      .def_prop_ro("vocab_size", [](const ModelRunner& self) { return self.config().vocab_size; })
      .def_prop_ro("weight_bytes", &ModelRunner::weight_bytes)
      .def_prop_ro("kv_cache_bytes", &ModelRunner::kv_cache_bytes,
                   nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("prefix_cache_bytes", &ModelRunner::prefix_cache_bytes,
                   nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("last_step_nodes", &ModelRunner::last_step_nodes,
                   nb::call_guard<nb::gil_scoped_release>(),
                   "Graph nodes of the last step, if counted.")
      .def("keep_logits", &ModelRunner::keep_logits, "enabled"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro(
          "last_logits", &last_logits,
          "Logits of the rows the last step drew from, float32 [n, vocab_size]; None unless kept.")
      .def("count_nodes", &ModelRunner::count_nodes, "enabled"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def("measure_activations", &ModelRunner::measure_activations, "num_tokens"_a,
           "num_requests"_a, nb::call_guard<nb::gil_scoped_release>(),
           "Run a step of that size on a cache of its own; returns the bytes in use besides "
           "weights and cache. Before initialize_kv_cache.")
      .def("initialize_kv_cache", &ModelRunner::initialize_kv_cache, "num_tokens"_a, "block_size"_a,
           "num_prefix_cache_blocks"_a = 0, nb::call_guard<nb::gil_scoped_release>(),
           "Set how many tokens live requests may keep, in blocks of block_size, and of how many "
           "of those a prefix cache is made.")
      .def("initialize_paged_kv_cache", &ModelRunner::initialize_paged_kv_cache, "num_blocks"_a,
           "block_size"_a, nb::call_guard<nb::gil_scoped_release>(),
           "Make a pool of blocks that the caller hands out; see `launch`.")
      .def("block_ids", &ModelRunner::block_ids, "request_id"_a,
           "Blocks of a live request in the paged KV cache, in the order of its tokens.")
      .def("check_invariants", &ModelRunner::check_invariants, "enabled"_a,
           nb::call_guard<nb::gil_scoped_release>(),
           "Have each step check what must hold of paged blocks.")
      .def("unload_weights", &ModelRunner::unload_weights, nb::call_guard<nb::gil_scoped_release>(),
           "Free the weights; every step fails until load_weights.")
      .def("load_weights", &load_weights, "progress"_a = nb::none(), nb::kw_only(),
           "read_pickle"_a = nb::none(),
           "Load them again from their files; raises what the constructor raises.")
      .def("discard_kv_cache", &ModelRunner::discard_kv_cache,
           nb::call_guard<nb::gil_scoped_release>(),
           "Free the memory of the KV cache and of the prefix cache, which then holds nothing; "
           "live requests must be preempted or end.")
      .def("draw", &draw, nb::kw_only(), "grammar_ids"_a = Ids(), "bitmask"_a = nb::none(),
           "given"_a = std::vector<std::tuple<size_t, int32_t>>(),
           "Have the tokens of the launched step drawn, without waiting for them.\n\n"
           "grammar_ids: requests with a grammar; bitmask int32 [n, ceil(vocab_size / 32)]: the "
           "tokens it allows. given: (index of the scheduled request, token drawn by the caller).")
      .def(
          "logits", &logits,
          "Wait for the logits that the launched step draws from: MLX's memory, read-only, through "
          "DLPack; float32 [n, vocab_size], one row for each of sampled_indices.")
      .def_prop_ro("sampled_indices", &ModelRunner::sampled_indices,
                   "Indexes of the scheduled requests that the launched step draws tokens of.");
  def_step<&ModelRunner::launch>(
      runner, "launch",
      "Start the forward pass of a step without waiting for it.\n\n"
      "finished, preempted: request ids. new_requests: (id, token_ids, how many of them are "
      "output, SamplingParams). sessions: likewise, of requests that keep their cache and have "
      "more input. updates: (id, all token_ids). scheduled: (id, num_computed_tokens, "
      "num_scheduled_tokens). Of the paged KV cache: blocks (id, block ids, whether they replace "
      "those before) and block_copies (source, target). Of the other: prefix_cache.");
  def_step<&ModelRunner::step>(runner, "step", "Launch a step, draw, and wait for its output.");
  module.def(
      "memory_stats",
      [] {
        const MemoryUse use = memory_use();
        nb::dict stats;
        stats["active"] = use.active;
        stats["peak"] = use.peak;
        stats["cache"] = use.cache;
        return stats;
      },
      "MLX's memory in bytes: active, peak, cache.");
}

}  // namespace vllm_metal
