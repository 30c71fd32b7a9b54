// SPDX-License-Identifier: Apache-2.0
#include "runner/step_executor.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "cache/contiguous_kv_cache.h"
#include "cache/paged_kv_cache.h"
#include "common/log.h"
#include "common/mlx_buffer.h"
#include "common/text.h"
#include "models/registry.h"
#include "platform/memory.h"
#include "runner/graph_size.h"

namespace vllm_metal {

namespace {

mx::array int32_array(const std::vector<int32_t>& values) {
  return mx::array(values.begin(), {static_cast<int>(values.size())}, mx::int32);
}

constexpr int32_t kMaxScoredRows = 64;  // of a prompt, whose logits exist at a time

// Whether no token is drawn by others or restricted by a grammar.
bool follow_from_logits(const DrawTask& task) {
  return std::ranges::all_of(
      task.rows, [](const DrawTask::Row& row) { return !row.given_token && row.bitmask_row < 0; });
}

// [num_rows, vocab_size] -> int32 [num_rows], the lowest id of equal logits, as sample_row takes it
mx::array most_likely_tokens(const mx::array& logits) {
  return mx::view(mx::argmax(logits, 1), mx::int32);
}

// Of a step whose hidden states are not wanted of all tokens.
std::optional<OutputTokens> find_outputs(const PackedStep& step, const BatchLayout& layout) {
  if (step.sample_rows.size() == step.token_ids.size() || !step.prompt_rows.empty()) return {};
  std::vector<int32_t> rows = step.sample_rows;
  std::vector<int> requests;
  for (int i = 0; i < layout.num_requests() && requests.size() < rows.size(); ++i) {
    const int32_t last = layout.query_starts[static_cast<size_t>(i) + 1] - 1;
    if (last == rows[requests.size()]) requests.push_back(i);
  }
  if (rows.empty()) {  // chunks of prompts: the step still needs an end
    rows.push_back(layout.num_tokens() - 1);
    requests.push_back(layout.num_requests() - 1);
  }
  return OutputTokens{int32_array(rows), layout_of_last_tokens(layout, requests)};
}

// The calling thread's: of the device, and of the CPU, where tokens are drawn.
void wait_for_streams() {
  mx::synchronize();
  mx::synchronize(mx::default_stream(mx::Device::cpu));
}

// Tokens are drawn on the CPU, and a GPU may be told to compute with them before they are there.
// CUDA's would spin until another kernel, which MLX (0.32.4) launches for the CPU's stream, has
// run: that was seen to take for ever. There the host waits, as MLX's own fences do. Metal has
// events, but work that waits for one during a step of seconds may be taken for work that hangs.
constexpr size_t kLongStep = 512;  // tokens

bool host_waits_for_tokens(size_t tokens_of_last_step) {
  if (mx::default_device() != mx::Device::gpu) return false;
  return mx::cu::is_available() || tokens_of_last_step > kLongStep;
}

}  // namespace

StepExecutor::StepExecutor(const std::filesystem::path& model_dir, const ModelConfig& config,
                           mx::Dtype dtype, LoadCallbacks callbacks)
    : model_dir_(model_dir),
      config_(config),
      dtype_(dtype),
      find_tokens_on_device_(mx::default_device() == mx::Device::gpu) {
  load_weights(std::move(callbacks));
}

void StepExecutor::load_weights(LoadCallbacks callbacks) {
  thread_.run([&] {
    if (model_ != nullptr) return;
    const size_t before = memory_use().active;
    auto model = load_model(model_dir_, config_, dtype_, std::move(callbacks));
    wait_for_streams();  // throws what a kernel threw
    model_ = std::move(model);
    weight_bytes_ = memory_use().active - before;
    kv_cache_spec_ = model_->kv_cache_spec();
  });
}

void StepExecutor::unload_weights() {
  thread_.run([this] {
    launched_.reset();
    last_logits_.reset();
    wait_for_streams();
    model_.reset();
    return_unused_memory();
  });
}

void StepExecutor::discard_kv_cache() {
  thread_.run([this] {
    launched_.reset();
    wait_for_streams();
    if (cache_) cache_->clear();
    if (prefix_cache_) prefix_cache_->clear();
    return_unused_memory();
  });
}

StepExecutor::~StepExecutor() {
  thread_.run([this] {
    launched_.reset();
    last_tokens_.reset();
    last_logits_.reset();
    prefix_cache_.reset();
    cache_.reset();
    model_.reset();
    try {
      wait_for_streams();
    } catch (const std::exception& error) {  // of work that nobody waits for any more
      log(LogLevel::kWarning, text("A step failed: ", error.what()));
    }
  });
}

void StepExecutor::initialize_kv_cache(int64_t num_tokens, int block_size,
                                       int64_t num_prefix_cache_blocks) {
  thread_.run([&] {
    auto cache = std::make_unique<ContiguousKVCache>(*kv_cache_spec_, num_tokens, block_size);
    prefix_cache_.reset();
    contiguous_cache_ = nullptr;
    if (num_prefix_cache_blocks != 0) {
      prefix_cache_ =
          std::make_unique<PrefixCache>(*kv_cache_spec_, num_prefix_cache_blocks, block_size);
      contiguous_cache_ = cache.get();
    }
    cache_ = std::move(cache);
  });
}

void StepExecutor::initialize_paged_kv_cache(int64_t num_blocks, int block_size) {
  thread_.run(
      [&] { cache_ = std::make_unique<PagedKVCache>(*kv_cache_spec_, num_blocks, block_size); });
}

void StepExecutor::check_invariants(bool enabled) {
  thread_.run([&] {
    if (cache_) cache_->check_invariants(enabled);
  });
}

size_t StepExecutor::kv_cache_bytes() {
  return thread_.run([this] { return cache_ ? cache_->nbytes() : size_t{0}; });
}

size_t StepExecutor::prefix_cache_bytes() {
  return thread_.run([this] { return prefix_cache_ ? prefix_cache_->nbytes() : size_t{0}; });
}

void StepExecutor::launch(std::vector<RequestKey> released, std::shared_ptr<const PackedStep> step,
                          PrefixCacheStep prefix_cache) {
  thread_.post([this, released = std::move(released), step = std::move(step),
                prefix = std::move(prefix_cache)] {
    launched_.reset();
    if (launch_error_) return;  // of a launch without a step, which nobody has asked about
    try {
      const cpu::NoteKernelErrors noted(step ? std::make_shared<cpu::KernelErrors>() : nullptr);
      if (launches_until_clear_ > 0 && --launches_until_clear_ == 0) mx::clear_cache();
      if (prefix.clear) clear_prefix_cache();
      save_and_release(prefix.saves_of_ended, released);
      if (step != nullptr) launched_ = forward(*step, prefix.loads);
      save_prefixes(prefix.saves_of_scheduled);
    } catch (...) {
      launch_error_ = std::current_exception();
    }
  });
}

mx::array StepExecutor::logits() {
  return thread_.run([this] {
    if (!launched().has_samples)
      throw std::invalid_argument("[runner] the launched step draws no tokens.");
    mx::array logits = mx::contiguous(launched_->logits);
    const cpu::NoteKernelErrors noted(launched_->kernel_errors);
    logits.eval();
    if (launched_->most_likely) launched_->most_likely->eval();  // see draw()
    launched_->kernel_errors->rethrow();
    return logits;
  });
}

void StepExecutor::draw(std::shared_ptr<DrawTask> task) {
  thread_.post([this, task = std::move(task)] {
    try {
      const Launched step = std::move(launched());
      launched_.reset();
      const cpu::NoteKernelErrors noted(step.kernel_errors);
      task->kernel_errors = step.kernel_errors;
      std::vector<mx::array> after = step.nodes;
      // On CUDA reading the logits moves them: not before the device has read them.
      if (step.most_likely) after.push_back(*step.most_likely);
      const mx::array drawn = draw_tokens(step.logits, std::move(after), task);
      last_tokens_on_device_ = step.most_likely && follow_from_logits(*task);
      last_tokens_ = last_tokens_on_device_ ? *step.most_likely : drawn;
      mx::async_eval({drawn});
    } catch (...) {
      task->fail(std::current_exception());
      last_tokens_ = mx::zeros({std::max(static_cast<int>(task->rows.size()), 1)}, mx::int32);
    }
  });
}

void StepExecutor::synchronize() { thread_.run(wait_for_streams); }

void StepExecutor::find_tokens_on_device(bool enabled) {
  thread_.run([&] { find_tokens_on_device_ = enabled; });
}

void StepExecutor::count_nodes(bool enabled) {
  thread_.run([&] { count_nodes_ = enabled; });
}

size_t StepExecutor::last_step_nodes() {
  return thread_.run([this] { return last_step_nodes_; });
}

void StepExecutor::keep_logits(bool enabled) {
  thread_.run([&] { keep_logits_ = enabled; });
}

std::optional<mx::array> StepExecutor::last_logits() {
  return thread_.run([this] {
    if (last_logits_) {
      last_logits_ = mx::contiguous(*last_logits_);
      last_logits_->eval();
    }
    return last_logits_;
  });
}

StepExecutor::Launched& StepExecutor::launched() {
  if (launch_error_) std::rethrow_exception(std::exchange(launch_error_, nullptr));
  if (!launched_) throw std::invalid_argument("[runner] no step is launched.");
  return *launched_;
}

void StepExecutor::save_and_release(const std::vector<CachedBlocks>& saves,
                                    const std::vector<RequestKey>& ended) {
  try {
    save_prefixes(saves);
  } catch (...) {
    release(ended);
    throw;
  }
  release(ended);
}

void StepExecutor::release(const std::vector<RequestKey>& keys) {
  if (keys.empty()) return;
  const size_t held = cache_->nbytes();
  for (const RequestKey key : keys) cache_->release(key);
  if (cache_->nbytes() < held) {
    mx::clear_cache();  // MLX would keep freed buffers for itself
    // Those that the next step copies from, or that one under way reads, are free the step after
    // it.
    launches_until_clear_ = 2;
  }
  if (loads_under_way_ && cache_->nbytes() == 0) {
    // Saves come after loads because both use the slabs, which are gone.
    wait_for_streams();
    loads_under_way_ = false;
  }
}

void StepExecutor::clear_prefix_cache() {
  if (prefix_cache_ == nullptr) return;
  wait_for_streams();  // those who copy hold the memory
  prefix_cache_->clear();
  return_unused_memory();
}

// Evaluated by itself: in one evaluation with the next step, that step's writes would not wait for
// the copies, since MLX orders by what depends on what.
void StepExecutor::save_prefixes(const std::vector<CachedBlocks>& blocks) {
  if (blocks.empty()) return;
  prefix_cache_->save(*contiguous_cache_, blocks);
  const std::vector<mx::array> pools = prefix_cache_->arrays();
  if (count_nodes_) last_step_nodes_ += graph_size(pools);
  mx::async_eval(pools);
}

// Embeddings, and the hidden states and logits that tokens are drawn from, are made by ops of MLX's
// own, which do not look whether there is memory for them: ours leave it to them. The step before
// may still be under way.
void StepExecutor::leave_memory_to_mlx(const PackedStep& step) {
  size_t rows = step.sample_rows.size();
  for (const auto& prompt : step.prompt_rows) {
    rows = std::max(rows, static_cast<size_t>(std::min(kMaxScoredRows, prompt.count)));
  }
  const auto hidden_size = static_cast<size_t>(config_.hidden_size);
  const size_t hidden_bytes = (step.token_ids.size() + rows) * hidden_size * mx::size_of(dtype_);
  const size_t bytes =
      hidden_bytes + rows * static_cast<size_t>(config_.vocab_size) * sizeof(float);
  expect_memory(bytes);
  leave_memory_free(bytes + bytes_of_mlx_);
  bytes_of_mlx_ = bytes;
}

StepExecutor::Launched StepExecutor::forward(const PackedStep& step,
                                             const std::vector<CachedBlocks>& loads) {
  if (model_ == nullptr) throw std::runtime_error("[runner] the weights are unloaded.");
  leave_memory_to_mlx(step);
  const BatchLayout layout = cache_->prepare(step.cache);
  if (!loads.empty()) {
    prefix_cache_->load(*contiguous_cache_, loads);
    loads_under_way_ = true;
  }
  const std::optional<OutputTokens> outputs = find_outputs(step, layout);
  ForwardContext context{layout, step.positions, step.request_lens, *cache_,
                         outputs ? &*outputs : nullptr};
  const mx::array hidden = model_->forward(input_ids(step), context);
  const bool has_samples = !step.sample_rows.empty();
  // A step of unfinished prefill chunks still fills the cache.
  mx::array logits = hidden;
  if (has_samples) logits = outputs ? logits_of(hidden) : logits_of_rows(hidden, step.sample_rows);
  Launched launched{std::move(logits), score_prompts(hidden, step), has_samples, std::nullopt,
                    cpu::current_kernel_errors()};
  if (has_samples && step.takes_most_likely && find_tokens_on_device_)
    launched.most_likely = most_likely_tokens(launched.logits);
  // Those of the CPU first: MLX has the stream of the first one wait for all others.
  std::vector<mx::array> nodes = launched.nodes;
  nodes.push_back(launched.logits);
  if (launched.most_likely) nodes.push_back(*launched.most_likely);
  if (count_nodes_) last_step_nodes_ = graph_size(nodes);
  if (!step.pending.empty() && !last_tokens_on_device_ &&
      host_waits_for_tokens(tokens_of_last_step_) &&
      last_tokens_->status() != mx::array::Status::unscheduled) {  // drawn, not made up
    last_tokens_->wait();
  }
  tokens_of_last_step_ = step.token_ids.size();
  mx::async_eval(nodes);
  if (keep_logits_ && has_samples) last_logits_ = launched.logits;
  return launched;
}

mx::array StepExecutor::input_ids(const PackedStep& step) const {
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
  mx::array drawn = mx::take(*last_tokens_, int32_array(rows), 0);
  if (step.pending.size() == num_tokens) return drawn;
  const mx::array mask(is_pending.begin(), {static_cast<int>(num_tokens)}, mx::bool_);
  return mx::where(mask, drawn, int32_array(step.token_ids));
}

mx::array StepExecutor::logits_of_rows(const mx::array& hidden,
                                       const std::vector<int32_t>& rows) const {
  const bool all = rows.size() == static_cast<size_t>(hidden.shape(0));
  return logits_of(all ? hidden : mx::take(hidden, int32_array(rows), 0));
}

mx::array StepExecutor::logits_of(const mx::array& hidden) const {
  return mx::astype(model_->logits(hidden), mx::float32);
}

std::vector<mx::array> StepExecutor::score_prompts(const mx::array& hidden,
                                                   const PackedStep& step) const {
  std::vector<mx::array> nodes;
  for (const auto& prompt : step.prompt_rows) {
    for (int32_t begin = 0; begin < prompt.count; begin += kMaxScoredRows) {
      std::vector<int32_t> rows(
          static_cast<size_t>(std::min(kMaxScoredRows, prompt.count - begin)));
      std::iota(rows.begin(), rows.end(), prompt.first_row + begin);
      nodes.push_back(
          score_prompt(logits_of_rows(hidden, rows), prompt.scores, prompt.first_position + begin));
    }
  }
  return nodes;
}

}  // namespace vllm_metal
