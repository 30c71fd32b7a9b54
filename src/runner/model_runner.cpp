// SPDX-License-Identifier: Apache-2.0
#include "runner/model_runner.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "common/log.h"
#include "common/mlx_buffer.h"
#include "common/text.h"
#include "config/env.h"
#include "files/input_file.h"
#include "models/registry.h"
#include "runner/graph_size.h"

namespace vllm_metal {

namespace {

// As json_file.py allows; those of real models have some kilobytes.
constexpr uint64_t kMaxConfigBytes = 100'000'000;

}  // namespace

Json read_model_config(const std::filesystem::path& model_dir) {
  const auto path = model_dir / "config.json";
  const std::string content = read_small_file(path, kMaxConfigBytes);
  try {
    return Json::parse(content);
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

namespace {

std::shared_ptr<const SamplerConfig> with_vocab_size(SamplerConfig config, int vocab_size) {
  config.vocab_size = vocab_size;
  return std::make_shared<const SamplerConfig>(std::move(config));
}

// The line of VLLM_METAL_DEBUG.
void log_step(size_t num_requests, size_t num_tokens, size_t num_sampled,
              const StepOutput& output) {
  if (!environment().debug) return;
  const MemoryUse memory = memory_use();
  log(LogLevel::kDebug,
      text("step: ", num_requests, " requests, ", num_tokens, " tokens, ", num_sampled,
           " sampled; idle ", output.idle_ms, " ms, forward ", output.forward_ms, " ms, sampling ",
           output.sampling_ms, " ms; memory ", memory.active >> 20, " MiB active, ",
           memory.peak >> 20, " MiB peak"));
}

}  // namespace

ModelRunner::ModelRunner(ModelRunnerOptions options)
    : config_(ModelConfig::from_json(std::move(options.config))),
      sampler_config_(with_vocab_size(std::move(options.sampler), config_.vocab_size)),
      executor_(options.model_dir, config_, options.dtype, std::move(options.callbacks)),
      batch_(*sampler_config_) {}

size_t ModelRunner::measure_activations(int num_tokens, int num_requests) {
  if (has_kv_cache_)
    throw std::invalid_argument(
        "[runner] measure_activations must be called before initialize_kv_cache.");
  if (num_requests < 1 || num_tokens < num_requests)
    throw std::invalid_argument(text("[runner] measure_activations needs one token a request or ",
                                     "more but has ", num_tokens, " for ", num_requests, "."));
  StepInput first, last;
  for (int i = 0; i < num_requests; ++i) {
    const int count = num_tokens / num_requests + (i < num_tokens % num_requests ? 1 : 0);
    const std::string id = text("measure-", i);
    first.new_requests.push_back({id, std::vector<int32_t>(static_cast<size_t>(count), 0), {}});
    first.scheduled.push_back({id, 0, count});
    last.finished.push_back(id);
  }
  initialize_kv_cache(num_tokens, 1);
  release_reusable_memory();
  const size_t before = memory_use().active;
  mx::reset_peak_memory();
  step(first);
  const size_t used = before + kv_cache_bytes();
  const size_t peak = memory_use().peak;
  step(last);
  executor_.discard_kv_cache();
  has_kv_cache_ = false;
  return peak > used ? peak - used : 0;
}

void ModelRunner::initialize_kv_cache(int64_t num_tokens, int block_size,
                                      int64_t num_prefix_cache_blocks) {
  executor_.initialize_kv_cache(num_tokens, block_size, num_prefix_cache_blocks);
  has_kv_cache_ = true;
  num_prefix_cache_blocks_ = num_prefix_cache_blocks;
  block_size_ = block_size;
}

void ModelRunner::initialize_paged_kv_cache(int64_t num_blocks, int block_size) {
  executor_.initialize_paged_kv_cache(num_blocks, block_size);
  has_kv_cache_ = true;
}

void ModelRunner::unload_weights() {
  launched_.reset();
  collect(0);
  executor_.unload_weights();
}

void ModelRunner::discard_kv_cache() {
  launched_.reset();
  collect(0);
  executor_.discard_kv_cache();
}

void ModelRunner::launch(const StepInput& input) {
  if (!has_kv_cache_)
    throw std::invalid_argument("[runner] initialize_kv_cache must be called before a step.");
  launched_.reset();
  collect(1);
  check_prefix_cache(input);
  PrefixCacheStep prefix_cache{
      .clear = input.prefix_cache.clear,
      .saves_of_ended = batch_.cached_blocks(input.prefix_cache.saves_of_ended)};
  auto released = batch_.update(input);
  if (input.scheduled.empty()) {
    executor_.launch(std::move(released), nullptr, std::move(prefix_cache));
    return;
  }
  Launched launched{{}, {}, DrawTask::Clock::now()};
  try {
    launched.batch = batch_.pack(input);  // which knows all that is scheduled
  } catch (...) {
    executor_.launch(std::move(released), nullptr, std::move(prefix_cache));
    throw;
  }
  prefix_cache.loads = batch_.cached_blocks(input.prefix_cache.loads);
  prefix_cache.saves_of_scheduled = batch_.cached_blocks(input.prefix_cache.saves_of_scheduled);
  for (const auto& scheduled : input.scheduled) launched.ids.push_back(scheduled.id);
  executor_.launch(std::move(released), launched.batch.step, std::move(prefix_cache));
  launched_ = std::move(launched);
}

void ModelRunner::check_prefix_cache(const StepInput& input) const {
  const PrefixCacheInput& prefix_cache = input.prefix_cache;
  const bool is_used = prefix_cache.clear || !prefix_cache.saves_of_ended.empty() ||
                       !prefix_cache.loads.empty() || !prefix_cache.saves_of_scheduled.empty();
  if (is_used && num_prefix_cache_blocks_ == 0)
    throw std::invalid_argument("[runner] there is no prefix cache.");
  std::unordered_map<std::string, const ScheduledRequest*> scheduled;
  if (!prefix_cache.loads.empty() || !prefix_cache.saves_of_scheduled.empty())
    for (const auto& request : input.scheduled) scheduled[request.id] = &request;
  const auto check = [&](const PrefixBlocks& blocks, bool is_load) {
    const auto found = scheduled.find(blocks.id);
    const int64_t tokens =
        (blocks.first_block + static_cast<int64_t>(blocks.blocks.size())) * block_size_;
    if (found == scheduled.end())
      throw std::invalid_argument(
          text("[runner] request '", blocks.id, "' has cached blocks but is not scheduled."));
    const int64_t computed = found->second->num_computed_tokens;
    if (is_load ? tokens != computed || blocks.first_block != 0
                : tokens > computed + found->second->num_scheduled_tokens)
      throw std::invalid_argument(text("[runner] request '", blocks.id, "' has ", computed,
                                       " computed tokens but cached blocks up to ", tokens, "."));
  };
  for (const auto& load : prefix_cache.loads) check(load, true);
  for (const auto& save : prefix_cache.saves_of_scheduled) check(save, false);
}

mx::array ModelRunner::logits() {
  if (!launched_) throw std::invalid_argument("[runner] no step is launched.");
  return executor_.logits();
}

std::vector<size_t> ModelRunner::sampled_indices() const {
  std::vector<size_t> indices;
  if (!launched_) return indices;
  for (const auto& sample : launched_->batch.samples) indices.push_back(sample.scheduled_index);
  return indices;
}

std::shared_ptr<DrawTask> ModelRunner::make_task(const Launched& launched,
                                                 const DrawInput& input) const {
  auto task = std::make_shared<DrawTask>();
  task->config = sampler_config_;
  task->launched = launched.start;
  task->last_drawn = last_drawn_;
  task->output = std::make_shared<StepOutput>();
  task->output->token_ids.assign(launched.ids.size(), StepOutput::kNoToken);
  std::unordered_map<size_t, size_t> row_of;  // by scheduled index
  for (const auto& sample : launched.batch.samples) {
    row_of[sample.scheduled_index] = task->rows.size();
    task->rows.push_back({sample.scheduled_index, sample.request->sampling, std::nullopt});
    if (sample.request->prompt_logprobs != nullptr)
      task->output->prompt_logprobs.push_back(
          {sample.scheduled_index, sample.request->prompt_logprobs});
  }
  for (const auto& given : input.given) {
    auto row = row_of.find(given.scheduled_index);
    if (row == row_of.end() || given.token_id < 0 || given.token_id >= config_.vocab_size)
      throw std::invalid_argument(text("[runner] token ", given.token_id,
                                       " was given for scheduled request ", given.scheduled_index,
                                       ", which draws none or not this one."));
    task->rows[row->second].given_token = given.token_id;
  }
  const size_t words = (static_cast<size_t>(config_.vocab_size) + 31) / 32;
  if (input.bitmask.size() != input.grammar_ids.size() * words)
    throw std::invalid_argument(text("[runner] ", input.grammar_ids.size(), " grammars need ",
                                     input.grammar_ids.size() * words, " words of bitmask but got ",
                                     input.bitmask.size(), "."));
  for (size_t i = 0; i < input.grammar_ids.size(); ++i) {
    for (auto& row : task->rows)
      if (launched.ids[row.scheduled_index] == input.grammar_ids[i])
        row.bitmask_row = static_cast<int32_t>(i);
  }
  task->bitmask = input.bitmask;
  return task;
}

PendingOutput ModelRunner::draw(const DrawInput& input) {
  if (!launched_) {  // nothing was scheduled
    std::promise<std::shared_ptr<StepOutput>> nothing;
    nothing.set_value(std::make_shared<StepOutput>());
    return nothing.get_future().share();
  }
  auto task = make_task(*launched_, input);
  const Launched launched = *std::exchange(launched_, std::nullopt);
  const PackedStep& step = *launched.batch.step;
  InFlight in_flight{
      task->done.get_future().share(), {}, step.cache.keys.size(), step.token_ids.size()};
  executor_.draw(std::move(task));
  for (size_t row = 0; row < launched.batch.samples.size(); ++row) {
    const auto& [scheduled_index, request] = launched.batch.samples[row];
    in_flight.tokens.push_back({request, request->token_ids.size(), scheduled_index});
    request->token_ids.push_back(RequestState::kPending);
    request->pending_row = static_cast<int32_t>(row);
    request->prompt_logprobs = nullptr;
  }
  in_flight_.push_back(std::move(in_flight));
  return in_flight_.back().output;
}

void ModelRunner::collect(size_t keep) {
  const auto is_done = [](const InFlight& step) {
    return step.output.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  };
  while (!in_flight_.empty() && (in_flight_.size() > keep || is_done(in_flight_.front()))) {
    const InFlight step = std::move(in_flight_.front());
    in_flight_.pop_front();
    take_over(step);
  }
}

void ModelRunner::take_over(const InFlight& step) {
  const StepOutput& output = *step.output.get();
  for (const auto& [request, position, scheduled_index] : step.tokens)
    request->token_ids[position] = std::max(output.token_ids[scheduled_index], 0);
  log_step(step.num_requests, step.num_tokens, step.tokens.size(), output);
}

StepOutput ModelRunner::step(const StepInput& input) {
  launch(input);
  const PendingOutput output = draw();
  collect(0);
  return std::move(*output.get());
}

}  // namespace vllm_metal
