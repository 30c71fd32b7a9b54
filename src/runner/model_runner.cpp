// SPDX-License-Identifier: Apache-2.0
#include "runner/model_runner.h"

#include <chrono>
#include <fstream>
#include <numeric>
#include <sstream>
#include <stdexcept>

#include "common/log.h"
#include "common/text.h"
#include "config/env.h"
#include "models/registry.h"
#include "runner/graph_size.h"

namespace vllm_metal {

Json read_model_config(const std::filesystem::path& model_dir) {
  const auto path = model_dir / "config.json";
  std::ifstream file(path, std::ios::binary);
  std::stringstream content;
  if (!file || !(content << file.rdbuf()))
    throw std::runtime_error(text("[config] cannot read ", path.string(), "."));
  try {
    return Json::parse(content.str());
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(text("[config] ", path.string(), ": ", error.what()));
  }
}

mx::Dtype parse_dtype(const std::string& name) {
  if (name == "float32") return mx::float32;
  if (name == "float16") return mx::float16;
  if (name == "bfloat16") return mx::bfloat16;
  throw std::invalid_argument(
      text("[runner] dtype must be one of float32, float16, bfloat16 but is '", name, "'."));
}

ModelRunner::ModelRunner(ModelRunnerOptions options)
    : config_(ModelConfig::from_json(std::move(options.config))) {
  const size_t before = mx::get_active_memory();
  model_ = load_model(options.model_dir, config_, options.dtype, std::move(options.progress));
  weight_bytes_ = mx::get_active_memory() - before;
}

void ModelRunner::initialize_kv_cache(int64_t num_tokens, int block_size) {
  cache_.emplace(model_->kv_cache_spec(), num_tokens, block_size);
}

BatchLayout ModelRunner::make_layout(const PackedStep& step) {
  // All room first: making it for one request can move another.
  for (size_t i = 0; i < step.requests.size(); ++i)
    cache_->reserve(step.requests[i]->key, step.context_lens[i]);
  std::vector<int32_t> first_rows, slot_mapping;
  first_rows.reserve(step.requests.size());
  slot_mapping.reserve(step.token_ids.size());
  for (size_t i = 0; i < step.requests.size(); ++i) {
    first_rows.push_back(cache_->first_row(step.requests[i]->key));
    for (int32_t token = step.query_starts[i]; token < step.query_starts[i + 1]; ++token)
      slot_mapping.push_back(first_rows.back() + step.positions[static_cast<size_t>(token)]);
  }
  return BatchLayout(step.query_starts, step.context_lens, std::move(slot_mapping),
                     std::move(first_rows), 0);
}

mx::array ModelRunner::compute_logits(const PackedStep& step) {
  const BatchLayout layout = make_layout(step);
  ForwardContext context{layout, step.positions, step.request_lens, *cache_};
  const auto num_tokens = static_cast<int>(step.token_ids.size());
  mx::array hidden =
      model_->forward(mx::array(step.token_ids.begin(), {num_tokens}, mx::int32), context);
  std::vector<mx::array> outputs;
  if (!step.samples.empty()) {
    if (step.sample_rows.size() != step.token_ids.size()) {
      const mx::array rows(step.sample_rows.begin(), {static_cast<int>(step.sample_rows.size())},
                           mx::int32);
      hidden = mx::take(hidden, rows, 0);
    }
    outputs.push_back(mx::astype(model_->logits(hidden), mx::float32));
  } else {
    outputs.push_back(hidden);  // a step of unfinished prefill chunks still fills the cache
  }
  if (count_nodes_) last_step_nodes_ = graph_size(outputs);
  mx::eval(outputs);
  return outputs.front();
}

SampleOutput ModelRunner::sample_rows(const PackedStep& step, const mx::array& logits) const {
  std::vector<SampleRequest> requests;
  for (const auto& sample : step.samples)
    requests.push_back(
        {&sample.request->sampling, sample.request->seed, sample.request->num_output_tokens});
  return sample(std::span(logits.data<float>(), logits.size()), config_.vocab_size, requests);
}

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

// The line of VLLM_METAL_DEBUG.
void log_step(const PackedStep& step, Clock::duration forward, Clock::duration sampling) {
  if (!environment().debug) return;
  log(LogLevel::kDebug,
      text("step: ", step.requests.size(), " requests, ", step.token_ids.size(), " tokens, ",
           step.samples.size(), " sampled; forward ", milliseconds(forward), " ms, sampling ",
           milliseconds(sampling), " ms; memory ", mx::get_active_memory() >> 20, " MiB active, ",
           mx::get_peak_memory() >> 20, " MiB peak"));
}

}  // namespace

StepOutput ModelRunner::step(const StepInput& input) {
  if (!cache_)
    throw std::invalid_argument("[runner] initialize_kv_cache must be called before step.");
  const size_t held = cache_->nbytes();
  batch_.update(input, *cache_);
  if (cache_->nbytes() < held) mx::clear_cache();  // MLX would keep freed buffers for itself
  StepOutput output;
  output.token_ids.assign(input.scheduled.size(), StepOutput::kNoToken);
  if (input.scheduled.empty()) return output;
  const PackedStep step = batch_.pack(input);
  const auto start = Clock::now();
  const mx::array logits = compute_logits(step);
  const auto computed = Clock::now();
  if (!step.samples.empty()) {
    if (keep_logits_) last_logits_ = logits;
    draw(step, logits, output);
  }
  log_step(step, computed - start, Clock::now() - computed);
  return output;
}

void ModelRunner::draw(const PackedStep& step, const mx::array& logits, StepOutput& output) {
  SampleOutput sampled = sample_rows(step, logits);
  for (size_t i = 0; i < step.samples.size(); ++i) {
    const auto& sample = step.samples[i];
    output.token_ids[sample.scheduled_index] = sampled.token_ids[i];
    if (sampled.token_ids[i] == SampleOutput::kFailed) continue;
    sample.request->token_ids.push_back(sampled.token_ids[i]);
    ++sample.request->num_output_tokens;
  }
  output.logprobs = std::move(sampled.logprobs);
}

}  // namespace vllm_metal
