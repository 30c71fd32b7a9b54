// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "models/model.h"
#include "runner/input_batch.h"
#include "runner/step.h"

namespace vllm_metal {

struct ModelRunnerOptions {
  std::filesystem::path model_dir;
  Json config;  // of the model; config.json, or what vLLM made of it
  mx::Dtype dtype = mx::float16;
  LoadProgress progress;
};

// Reads config.json of a model directory, for programs that use the core as a library.
Json read_model_config(const std::filesystem::path& model_dir);
// "float32", "float16" or "bfloat16"; throws std::invalid_argument for others.
mx::Dtype parse_dtype(const std::string& name);

// Runs steps of a model over a batch of requests that comes and goes. Not thread-safe: one
// step at a time.
class ModelRunner {
 public:
  // Loads the model onto MLX's default device. Throws as load_model does.
  explicit ModelRunner(ModelRunnerOptions options);

  // Must be called once before the first step. `num_tokens` is what the scheduler may keep in the
  // cache, in blocks of `block_size`.
  void initialize_kv_cache(int64_t num_tokens, int block_size);

  // Computes a step and draws the tokens. Throws std::invalid_argument for input that
  // contradicts itself, std::runtime_error when memory lacks. The runner can go on after both.
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
  BatchLayout make_layout(const PackedStep& step);
  // Logits of the rows to sample, float32 [num_samples, vocab_size], evaluated.
  mx::array compute_logits(const PackedStep& step);
  SampleOutput sample_rows(const PackedStep& step, const mx::array& logits) const;
  // Draws the step's tokens, into the output and onto the requests.
  void draw(const PackedStep& step, const mx::array& logits, StepOutput& output);

  ModelConfig config_;
  std::unique_ptr<Model> model_;
  size_t weight_bytes_ = 0;
  InputBatch batch_;
  std::optional<ContiguousKVCache> cache_;
  bool count_nodes_ = false;
  size_t last_step_nodes_ = 0;
  bool keep_logits_ = false;
  std::optional<mx::array> last_logits_;
};

}  // namespace vllm_metal
