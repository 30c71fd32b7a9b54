// SPDX-License-Identifier: Apache-2.0
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <map>
#include <memory>
#include <stdexcept>
#include <variant>

#include "arrays.h"
#include "bindings.h"
#include "common/text.h"
#include "kernels/cpu/parallel_for.h"
#include "sampling/sampler.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace vllm_metal {

namespace {

using Ids = std::vector<int32_t>;
using Biases = std::vector<std::pair<int32_t, float>>;
using BiasArgument = std::variant<std::map<int32_t, float>, Biases>;
using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

Biases to_biases(const BiasArgument& argument) {
  return std::visit([](const auto& biases) { return Biases(biases.begin(), biases.end()); },
                    argument);
}

void init_params(SamplingParams* self, float temperature, float top_p, int top_k, float min_p,
                 std::optional<int64_t> seed, float presence_penalty, float frequency_penalty,
                 float repetition_penalty, const BiasArgument& logit_bias,
                 std::optional<Ids> allowed_token_ids, std::vector<Ids> bad_words_token_ids,
                 int min_tokens, Ids all_stop_token_ids, bool has_grammar,
                 std::optional<int> thinking_token_budget, std::optional<int> num_logprobs,
                 Ids logprob_token_ids, std::optional<int> num_prompt_logprobs,
                 Ids prompt_logprob_token_ids, int prompt_logprob_ids_per_row,
                 int prompt_logprob_start) {
  SamplingParams params{.temperature = temperature,
                        .top_p = top_p,
                        .top_k = top_k,
                        .min_p = min_p,
                        .seed = seed,
                        .presence_penalty = presence_penalty,
                        .frequency_penalty = frequency_penalty,
                        .repetition_penalty = repetition_penalty,
                        .logit_bias = to_biases(logit_bias),
                        .allowed_token_ids = std::move(allowed_token_ids),
                        .bad_words_token_ids = std::move(bad_words_token_ids),
                        .min_tokens = min_tokens,
                        .all_stop_token_ids = std::move(all_stop_token_ids),
                        .has_grammar = has_grammar,
                        .thinking_token_budget = thinking_token_budget,
                        .num_logprobs = num_logprobs,
                        .logprob_token_ids = std::move(logprob_token_ids),
                        .num_prompt_logprobs = num_prompt_logprobs,
                        .prompt_logprob_token_ids = std::move(prompt_logprob_token_ids),
                        .prompt_logprob_ids_per_row = prompt_logprob_ids_per_row,
                        .prompt_logprob_start = prompt_logprob_start};
  params.validate();
  new (self) SamplingParams(std::move(params));
}

void bind_params(nb::module_& module) {
  using P = SamplingParams;
  nb::class_<P>(module, "SamplingParams", "How one request's tokens are drawn.")
      .def("__init__", &init_params, nb::kw_only(), "temperature"_a = 1.0f, "top_p"_a = 1.0f,
           "top_k"_a = 0, "min_p"_a = 0.0f, "seed"_a = nb::none(), "presence_penalty"_a = 0.0f,
           "frequency_penalty"_a = 0.0f, "repetition_penalty"_a = 1.0f, "logit_bias"_a = Biases(),
           "allowed_token_ids"_a = nb::none(), "bad_words_token_ids"_a = std::vector<Ids>(),
           "min_tokens"_a = 0, "all_stop_token_ids"_a = Ids(), "has_grammar"_a = false,
           "thinking_token_budget"_a = nb::none(), "num_logprobs"_a = nb::none(),
           "logprob_token_ids"_a = Ids(), "num_prompt_logprobs"_a = nb::none(),
           "prompt_logprob_token_ids"_a = Ids(), "prompt_logprob_ids_per_row"_a = 0,
           "prompt_logprob_start"_a = 0,
           "Meanings and defaults of vLLM's SamplingParams.\n\n"
           "num_logprobs, num_prompt_logprobs: -1 is the whole vocabulary. "
           "prompt_logprob_token_ids: row by row, prompt_logprob_ids_per_row each, -1 for none. "
           "Raises ValueError naming a parameter that is out of its range.")
      .def_ro("temperature", &P::temperature)
      .def_ro("top_p", &P::top_p)
      .def_ro("top_k", &P::top_k)
      .def_ro("min_p", &P::min_p)
      .def_ro("seed", &P::seed)
      .def_ro("presence_penalty", &P::presence_penalty)
      .def_ro("frequency_penalty", &P::frequency_penalty)
      .def_ro("repetition_penalty", &P::repetition_penalty)
      .def_ro("logit_bias", &P::logit_bias)
      .def_ro("allowed_token_ids", &P::allowed_token_ids)
      .def_ro("bad_words_token_ids", &P::bad_words_token_ids)
      .def_ro("min_tokens", &P::min_tokens)
      .def_ro("all_stop_token_ids", &P::all_stop_token_ids)
      .def_ro("has_grammar", &P::has_grammar)
      .def_ro("thinking_token_budget", &P::thinking_token_budget)
      .def_ro("num_logprobs", &P::num_logprobs)
      .def_ro("logprob_token_ids", &P::logprob_token_ids)
      .def_ro("num_prompt_logprobs", &P::num_prompt_logprobs)
      .def_ro("prompt_logprob_token_ids", &P::prompt_logprob_token_ids)
      .def_ro("prompt_logprob_ids_per_row", &P::prompt_logprob_ids_per_row)
      .def_ro("prompt_logprob_start", &P::prompt_logprob_start);
}

void init_config(SamplerConfig* self, int vocab_size, const std::string& logprobs_mode, Ids start,
                 Ids end, Ids natural_end) {
  SamplerConfig config{.vocab_size = vocab_size,
                       .logprobs_mode = parse_logprobs_mode(logprobs_mode),
                       .reasoning_start_token_ids = std::move(start),
                       .reasoning_end_token_ids = std::move(end),
                       .natural_reasoning_end_token_ids = std::move(natural_end)};
  config.validate();
  new (self) SamplerConfig(std::move(config));
}

void init_state(SamplingState* self, const SamplingParams& params, uint64_t seed,
                const SamplerConfig& config, const Ids& token_ids, int64_t num_output_tokens) {
  new (self) SamplingState(std::make_shared<const SamplingParams>(params), seed, config, token_ids,
                           num_output_tokens);
}

std::vector<SampleRow> sample_rows(const SamplerConfig& config, const Logits& logits,
                                   const std::vector<SamplingState*>& states,
                                   const std::optional<Bitmask>& bitmask) {
  const size_t num_rows = states.size();
  const auto vocab_size = static_cast<size_t>(config.vocab_size);
  const auto check = [](const char* name, size_t rows, size_t columns, const auto& array) {
    if (array.shape(0) == rows && array.shape(1) == columns) return;
    throw std::invalid_argument(text("[sample] ", name, " must be of shape [", rows, ", ", columns,
                                     "] but is [", array.shape(0), ", ", array.shape(1), "]."));
  };
  const size_t num_words = (vocab_size + 31) / 32;
  check("logits", num_rows, vocab_size, logits);
  if (bitmask) check("bitmask", num_rows, num_words, *bitmask);
  auto sorted = states;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
    throw std::invalid_argument("[sample] states must differ, one a row, but one comes twice.");
  std::vector<SampleRow> rows;
  for (size_t row = 0; row < num_rows; ++row)
    rows.push_back({states[row], bitmask ? bitmask->data() + row * num_words : nullptr});
  return rows;
}

nb::tuple draw(const SamplerConfig& config, const Logits& logits,
               const std::vector<SamplingState*>& states, const std::optional<Bitmask>& bitmask) {
  const std::vector<SampleRow> rows = sample_rows(config, logits, states, bitmask);
  SampleOutput output = make_sample_output(config, rows);
  {
    nb::gil_scoped_release release;
    const auto vocab_size = static_cast<size_t>(config.vocab_size);
    const std::span all(logits.data(), rows.size() * vocab_size);
    cpu::parallel_for(static_cast<int64_t>(rows.size()), 1, [&](int64_t begin, int64_t end) {
      for (auto row = static_cast<size_t>(begin); row < static_cast<size_t>(end); ++row)
        sample_row(config, all.subspan(row * vocab_size, vocab_size), rows[row], row, output);
    });
  }
  nb::object logprobs = nb::none();
  if (output.logprobs.width > 0) logprobs = score_arrays(std::move(output.logprobs));
  return nb::make_tuple(to_numpy(std::move(output.token_ids), {rows.size()}), logprobs);
}

}  // namespace

void bind_sampling(nb::module_& module) {
  bind_params(module);
  nb::class_<SamplerConfig>(module, "SamplerConfig",
                            "What sampling knows of the model and the engine.")
      .def("__init__", &init_config, "vocab_size"_a, nb::kw_only(),
           "logprobs_mode"_a = "raw_logprobs", "reasoning_start_token_ids"_a = Ids(),
           "reasoning_end_token_ids"_a = Ids(), "natural_reasoning_end_token_ids"_a = Ids(),
           "logprobs_mode: raw_logprobs, raw_logits, processed_logprobs or processed_logits. The "
           "reasoning ids mark what a thinking_token_budget limits; the end is what is forced, the "
           "natural end what the model writes (the same unless given).")
      .def_ro("vocab_size", &SamplerConfig::vocab_size);
  nb::class_<SamplingState>(module, "SamplingState", "One request as sampling sees it.")
      .def("__init__", &init_state, "params"_a, "seed"_a, "config"_a, "token_ids"_a = Ids(),
           "num_output_tokens"_a = 0,
           "token_ids: prompt and output so far, the last num_output_tokens of them output. Raises "
           "ValueError for ids outside of the vocabulary.")
      .def_prop_ro("num_output_tokens", &SamplingState::num_output_tokens)
      .def("append", &SamplingState::append, "token_id"_a, "Note a token generated elsewhere.");
  module.def("sample", &draw, "config"_a, "logits"_a.noconvert(), "states"_a,
             "bitmask"_a.noconvert() = nb::none(),
             "Draw a token a row and append it to the row's state, as a step does.\n\n"
             "logits: float32 [n, vocab_size], read in place; states: n different ones; bitmask: "
             "int32 [n, ceil(vocab_size / 32)], the tokens that grammars allow.\n"
             "Returns (token_ids int32 [n], logprobs): -1 where no token could be drawn; None or "
             "(token_ids [n, k], scores [n, k], ranks [n]), column 0 the drawn token.");
}

}  // namespace vllm_metal
