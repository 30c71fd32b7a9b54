// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <deque>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "models/model.h"
#include "runner/draw_tokens.h"
#include "runner/input_batch.h"
#include "runner/step.h"

namespace vllm_metal {

struct ModelRunnerOptions {
  std::filesystem::path model_dir;
  Json config;  // of the model; config.json, or what vLLM made of it
  mx::Dtype dtype = mx::float16;
  LoadProgress progress = {};
  SamplerConfig sampler = {};  // its vocab_size is the model's
};

// Reads config.json of a model directory, for programs that use the core as a library.
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
  ~ModelRunner();  // waits for the steps under way

  // Must be called once before the first step. `num_tokens` is what the scheduler may keep in the
  // cache, in blocks of `block_size`.
  void initialize_kv_cache(int64_t num_tokens, int block_size);

  // Starts the forward pass of a step; a launched step that was not drawn is dropped. Throws
  // std::invalid_argument for input that contradicts itself, std::runtime_error when memory
  // lacks. The runner can go on after both.
  void launch(const StepInput& input);
  // Logits of the rows that the launched step draws from, float32 [num_rows, vocab_size], waiting
  // for them; row i belongs to scheduled request sampled_indices()[i].
  mx::array logits();
  std::vector<size_t> sampled_indices() const;
  // Has the tokens of the launched step drawn. Throws std::invalid_argument for a grammar or a
  // token of a request that is not drawn.
  PendingOutput draw(const DrawInput& input = {});
  // All of it, waiting for the output.
  StepOutput step(const StepInput& input);

  const ModelConfig& config() const { return config_; }
  KVCacheSpec kv_cache_spec() const { return model_->kv_cache_spec(); }
  // Memory of the weights, bytes.
  size_t weight_bytes() const { return weight_bytes_; }
  size_t kv_cache_bytes() const { return cache_ ? cache_->nbytes() : 0; }
  // Graph nodes that the last step evaluated; counted only when asked for, since it walks the
  // graph.
  void count_nodes(bool enabled) { count_nodes_ = enabled; }
  size_t last_step_nodes() const { return last_step_nodes_; }
  // Logits of the rows the last step drew from, float32 [num_rows, vocab_size]; kept only when
  // asked for, for comparisons.
  void keep_logits(bool enabled) { keep_logits_ = enabled; }
  const std::optional<mx::array>& last_logits() const { return last_logits_; }

 private:
  // A launched step, not yet drawn.
  struct Launched {
    PackedStep step;
    mx::array logits;              // float32 [num_samples, vocab_size]; without samples the
                                   // hidden states
    std::vector<mx::array> nodes;  // others that the step waits for
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

  BatchLayout make_layout(const PackedStep& step);
  mx::array input_ids(const PackedStep& step) const;
  void launch_forward(PackedStep step);
  mx::array logits_of_rows(const mx::array& hidden, const std::vector<int32_t>& rows) const;
  void score_prompts(const mx::array& hidden, Launched& launched) const;
  std::shared_ptr<DrawTask> make_task(const Launched& launched, const DrawInput& input) const;
  // Takes over the tokens of all steps but the last `keep`, waiting for them, and of those that
  // are done.
  void collect(size_t keep);
  void take_over(const InFlight& step);

  ModelConfig config_;
  std::shared_ptr<const SamplerConfig> sampler_config_;
  std::unique_ptr<Model> model_;
  size_t weight_bytes_ = 0;
  InputBatch batch_;
  std::optional<ContiguousKVCache> cache_;
  std::optional<Launched> launched_;
  size_t num_scheduled_ = 0;  // of the last launch
  std::deque<InFlight> in_flight_;
  std::shared_ptr<DrawTask::Clock::time_point> last_drawn_ =
      std::make_shared<DrawTask::Clock::time_point>(DrawTask::Clock::now());
  std::optional<mx::array> last_tokens_;  // int32, what the last step of in_flight_ draws
  bool count_nodes_ = false;
  size_t last_step_nodes_ = 0;
  bool keep_logits_ = false;
  std::optional<mx::array> last_logits_;
};

}  // namespace vllm_metal
