// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <deque>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "runner/draw_tokens.h"
#include "runner/input_batch.h"
#include "runner/step.h"
#include "runner/step_executor.h"

namespace vllm_metal {

struct ModelRunnerOptions {
  std::filesystem::path model_dir;
  Json config;  // of the model; config.json, or what vLLM made of it
  mx::Dtype dtype = mx::float16;
  LoadCallbacks callbacks = {};
  SamplerConfig sampler = {};  // its vocab_size is the model's
};

// Reads config.json of a model directory, for programs that use the core as a library. Throws
// std::runtime_error when it is no regular file, std::invalid_argument when it is no JSON or
// larger than any configuration.
Json read_model_config(const std::filesystem::path& model_dir);
// "float32", "float16" or "bfloat16"; throws std::invalid_argument for others.
mx::Dtype parse_dtype(const std::string& name);

// Runs steps of a model over a batch of requests that comes and goes. Not thread-safe: one
// thread launches and draws; any may wait for outputs.
//
// A step is launched, then drawn, and neither waits for the device: two steps may be under way,
// the later one fed with tokens that only the device knows yet.
class ModelRunner {
 public:
  // Loads the model onto MLX's default device. Throws as load_model does.
  explicit ModelRunner(ModelRunnerOptions options);
  // Runs a step of so many tokens, shared out among so many requests, and returns the bytes that it
  // had in use besides weights and cache: what any step of that size may need. Only before
  // initialize_kv_cache, since it uses a cache of its own.
  size_t measure_activations(int num_tokens, int num_requests);

  // Must be called once before the first step. `num_tokens` is what the scheduler may keep in the
  // cache, in blocks of `block_size`; a prefix cache has as many blocks of that size.
  void initialize_kv_cache(int64_t num_tokens, int block_size, int64_t num_prefix_cache_blocks = 0);
  // The same for the paged cache, whose blocks the scheduler hands out. `block_size` is one of
  // PagedKVCache::kBlockSizes.
  void initialize_paged_kv_cache(int64_t num_blocks, int block_size);
  // Blocks of a live request, in the order of its tokens, as the last launched step left them.
  std::vector<int32_t> block_ids(const std::string& id) const { return batch_.block_ids(id); }
  // Has each step check what must hold of blocks, if they are paged; for tests.
  void check_invariants(bool enabled) { executor_.check_invariants(enabled); }

  // Starts the forward pass of a step and returns at once; a launched step that was not drawn is
  // dropped. Throws std::invalid_argument for input that contradicts itself; the runner can go on.
  // What goes wrong later, lack of memory say, is thrown by the output.
  void launch(const StepInput& input);
  // Logits of the rows that the launched step draws from, float32 [num_rows, vocab_size], waiting
  // for them; row i belongs to scheduled request sampled_indices()[i].
  mx::array logits();
  std::vector<size_t> sampled_indices() const;
  // Has the tokens of the launched step drawn, and returns at once. Throws std::invalid_argument
  // for a bitmask of another size or a token of a request that is not drawn.
  PendingOutput draw(const DrawInput& input = {});
  // All of it, waiting for the output.
  StepOutput step(const StepInput& input);
  // Frees the weights, or loads them again from their files (throws as load_model does); between
  // the two every step fails.
  void unload_weights();
  void load_weights(LoadCallbacks callbacks = {}) { executor_.load_weights(std::move(callbacks)); }
  // Frees the memory of the KV cache and of the prefix cache, which then holds nothing. The
  // requests that live have to be preempted, or end.
  void discard_kv_cache();

  // Waits for all steps.
  void synchronize() { executor_.synchronize(); }

  const ModelConfig& config() const { return config_; }
  KVCacheSpec kv_cache_spec() const { return executor_.kv_cache_spec(); }
  // Memory of the weights, bytes.
  size_t weight_bytes() const { return executor_.weight_bytes(); }
  size_t kv_cache_bytes() { return executor_.kv_cache_bytes(); }
  size_t prefix_cache_bytes() { return executor_.prefix_cache_bytes(); }
  // See StepExecutor.
  void find_tokens_on_device(bool enabled) { executor_.find_tokens_on_device(enabled); }
  // Graph nodes that the last forward pass evaluated, if counted, which takes time.
  void count_nodes(bool enabled) { executor_.count_nodes(enabled); }
  size_t last_step_nodes() { return executor_.last_step_nodes(); }
  // Logits of the rows the last step drew from, float32 [num_rows, vocab_size]; kept only when
  // asked for, for comparisons.
  void keep_logits(bool enabled) { executor_.keep_logits(enabled); }
  std::optional<mx::array> last_logits() { return executor_.last_logits(); }

 private:
  // A launched step, not yet drawn.
  struct Launched {
    Batch batch;
    std::vector<std::string> ids;  // [num_scheduled]
    DrawTask::Clock::time_point start;
  };
  // A drawn step whose tokens may not be known yet.
  struct InFlight {
    struct Token {
      std::shared_ptr<RequestState> request;
      size_t position;
      size_t scheduled_index;
    };
    PendingOutput output;
    std::vector<Token> tokens;
    size_t num_requests;
    size_t num_tokens;
  };

  std::shared_ptr<DrawTask> make_task(const Launched& launched, const DrawInput& input) const;
  void check_prefix_cache(const StepInput& input) const;
  // Takes over the tokens of all steps but the last `keep`, waiting for them, and of those that
  // are done.
  void collect(size_t keep);
  void take_over(const InFlight& step);

  ModelConfig config_;
  std::shared_ptr<const SamplerConfig> sampler_config_;
  StepExecutor executor_;
  bool has_kv_cache_ = false;
  int64_t num_prefix_cache_blocks_ = 0;
  int block_size_ = 0;
  InputBatch batch_;
  std::optional<Launched> launched_;
  std::deque<InFlight> in_flight_;
  std::shared_ptr<DrawTask::Clock::time_point> last_drawn_ =
      std::make_shared<DrawTask::Clock::time_point>(DrawTask::Clock::now());
};

}  // namespace vllm_metal
