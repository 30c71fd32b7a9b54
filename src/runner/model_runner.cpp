// SPDX-License-Identifier: Apache-2.0
#include "runner/model_runner.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <unordered_map>
#include <utility>

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

namespace {

std::shared_ptr<const SamplerConfig> with_vocab_size(SamplerConfig config, int vocab_size) {
  config.vocab_size = vocab_size;
  return std::make_shared<const SamplerConfig>(std::move(config));
}

// The line of VLLM_METAL_DEBUG.
void log_step(size_t num_requests, size_t num_tokens, size_t num_sampled,
              const StepOutput& output) {
  if (!environment().debug) return;
  log(LogLevel::kDebug,
      text("step: ", num_requests, " requests, ", num_tokens, " tokens, ", num_sampled,
           " sampled; idle ", output.idle_ms, " ms, forward ", output.forward_ms, " ms, sampling ",
           output.sampling_ms, " ms; memory ", mx::get_active_memory() >> 20, " MiB active, ",
           mx::get_peak_memory() >> 20, " MiB peak"));
}

mx::array int32_array(const std::vector<int32_t>& values) {
  return mx::array(values.begin(), {static_cast<int>(values.size())}, mx::int32);
}

}  // namespace

ModelRunner::ModelRunner(ModelRunnerOptions options)
    : config_(ModelConfig::from_json(std::move(options.config))),
      sampler_config_(with_vocab_size(std::move(options.sampler), config_.vocab_size)),
      batch_(*sampler_config_) {
  const size_t before = mx::get_active_memory();
  model_ = load_model(options.model_dir, config_, options.dtype, std::move(options.progress));
  weight_bytes_ = mx::get_active_memory() - before;
}

ModelRunner::~ModelRunner() {
  for (const auto& step : in_flight_) step.output.wait();
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

mx::array ModelRunner::input_ids(const PackedStep& step) const {
  if (step.pending.empty()) return int32_array(step.token_ids);
  const size_t num_tokens = step.token_ids.size();
  std::vector<int32_t> rows(num_tokens, 0);
  std::vector<uint8_t> is_pending(num_tokens, 0);
  bool in_order = step.pending.size() == num_tokens && last_tokens_->size() == num_tokens;
  for (const auto& token : step.pending) {
    rows[token.index] = token.row;
    is_pending[token.index] = 1;
    in_order = in_order && token.row == static_cast<int32_t>(token.index);
  }
  if (in_order) return *last_tokens_;  // the same requests as in the step before
  const mx::array drawn = mx::take(*last_tokens_, int32_array(rows), 0);
  if (step.pending.size() == num_tokens) return drawn;
  const mx::array mask(is_pending.begin(), {static_cast<int>(num_tokens)}, mx::bool_);
  return mx::where(mask, drawn, int32_array(step.token_ids));
}

mx::array ModelRunner::logits_of_rows(const mx::array& hidden,
                                      const std::vector<int32_t>& rows) const {
  const bool all = rows.size() == static_cast<size_t>(hidden.shape(0));
  const mx::array picked = all ? hidden : mx::take(hidden, int32_array(rows), 0);
  return mx::astype(model_->logits(picked), mx::float32);
}

void ModelRunner::score_prompts(const mx::array& hidden, Launched& launched) const {
  constexpr int32_t kMaxRows = 64;  // whose logits exist at a time
  for (const auto& prompt : launched.step.prompt_rows) {
    for (int32_t begin = 0; begin < prompt.count; begin += kMaxRows) {
      std::vector<int32_t> rows(static_cast<size_t>(std::min(kMaxRows, prompt.count - begin)));
      std::iota(rows.begin(), rows.end(), prompt.first_row + begin);
      launched.nodes.push_back(
          score_prompt(logits_of_rows(hidden, rows), prompt.scores, prompt.first_position + begin));
    }
  }
}

void ModelRunner::launch_forward(PackedStep step) {
  const auto start = DrawTask::Clock::now();
  const BatchLayout layout = make_layout(step);
  ForwardContext context{layout, step.positions, step.request_lens, *cache_};
  const mx::array hidden = model_->forward(input_ids(step), context);
  // A step of unfinished prefill chunks still fills the cache.
  Launched launched{std::move(step), hidden, {}, start};
  if (!launched.step.samples.empty())
    launched.logits = logits_of_rows(hidden, launched.step.sample_rows);
  score_prompts(hidden, launched);
  std::vector<mx::array> outputs = launched.nodes;
  outputs.push_back(launched.logits);
  if (count_nodes_) last_step_nodes_ = graph_size(outputs);
  mx::async_eval(outputs);
  if (keep_logits_ && !launched.step.samples.empty()) last_logits_ = launched.logits;
  launched_ = std::move(launched);
}

void ModelRunner::launch(const StepInput& input) {
  if (!cache_)
    throw std::invalid_argument("[runner] initialize_kv_cache must be called before a step.");
  launched_.reset();
  collect(1);
  const size_t held = cache_->nbytes();
  batch_.update(input, *cache_);
  if (cache_->nbytes() < held) mx::clear_cache();  // MLX would keep freed buffers for itself
  num_scheduled_ = input.scheduled.size();
  if (!input.scheduled.empty()) launch_forward(batch_.pack(input));
}

mx::array ModelRunner::logits() {
  if (!launched_ || launched_->step.samples.empty())
    throw std::invalid_argument("[runner] no launched step draws tokens.");
  mx::array logits = mx::contiguous(launched_->logits);
  logits.eval();
  return logits;
}

std::vector<size_t> ModelRunner::sampled_indices() const {
  std::vector<size_t> indices;
  if (!launched_) return indices;
  for (const auto& sample : launched_->step.samples) indices.push_back(sample.scheduled_index);
  return indices;
}

std::shared_ptr<DrawTask> ModelRunner::make_task(const Launched& launched,
                                                 const DrawInput& input) const {
  const PackedStep& step = launched.step;
  auto task = std::make_shared<DrawTask>();
  task->config = sampler_config_;
  task->launched = launched.start;
  task->last_drawn = last_drawn_;
  task->output = std::make_shared<StepOutput>();
  task->output->token_ids.assign(num_scheduled_, StepOutput::kNoToken);
  std::unordered_map<size_t, size_t> row_of;  // by scheduled index
  for (const auto& sample : step.samples) {
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
      if (step.ids[row.scheduled_index] == input.grammar_ids[i])
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
  InFlight in_flight{
      task->done.get_future().share(), {}, num_scheduled_, launched.step.token_ids.size()};
  const mx::array tokens = draw_tokens(launched.logits, launched.nodes, task);
  mx::async_eval({tokens});
  last_tokens_ = tokens;
  for (size_t row = 0; row < launched.step.samples.size(); ++row) {
    const auto& [scheduled_index, request] = launched.step.samples[row];
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
