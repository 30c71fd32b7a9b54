// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "cache/kv_cache.h"
#include "common/task_thread.h"
#include "models/model.h"
#include "runner/draw_tokens.h"
#include "runner/packed_step.h"
#include "weights/weight_store.h"

namespace vllm_metal {

// The device's side of a runner: model, KV cache and the tokens drawn last. It computes packed
// steps in the order they are launched, on a thread of its own, since building a graph takes the
// host a while and MLX makes whoever evaluates wait when much is queued: the caller has the next
// step to schedule meanwhile. All of MLX is used on that thread; its streams belong to it.
class StepExecutor {
 public:
  // Loads the model onto MLX's default device. Throws as load_model does.
  StepExecutor(const std::filesystem::path& model_dir, const ModelConfig& config, mx::Dtype dtype,
               LoadCallbacks callbacks);
  ~StepExecutor();  // waits for what was launched

  // Frees the weights, or loads them again from their files; between the two every step fails.
  void unload_weights();
  void load_weights(LoadCallbacks callbacks);
  // Frees the memory of the KV cache. The requests that live then have to be computed anew.
  void discard_kv_cache();

  KVCacheSpec kv_cache_spec() const { return *kv_cache_spec_; }
  size_t weight_bytes() const { return weight_bytes_; }
  // One of the two, once. Without blocks there is no prefix cache.
  void initialize_kv_cache(int64_t num_tokens, int block_size, int64_t num_prefix_cache_blocks);
  void initialize_paged_kv_cache(int64_t num_blocks, int block_size);
  void check_invariants(bool enabled);
  size_t kv_cache_bytes();
  size_t prefix_cache_bytes();

  // Gives back the cache of `released`, then starts the forward pass of `step`, if any, with the
  // prefix cache's part before and after. Returns at once; what goes wrong is thrown by logits()
  // and by the output of draw().
  void launch(std::vector<RequestKey> released, std::shared_ptr<const PackedStep> step,
              PrefixCacheStep prefix_cache = {});
  // Logits of the launched step's samples, float32 [num_samples, vocab_size], row contiguous,
  // waiting for them.
  mx::array logits();
  // Has the tokens of the launched step drawn. Returns at once.
  void draw(std::shared_ptr<DrawTask> task);
  // Waits for all that was launched and drawn.
  void synchronize();
  // Whether tokens that are just the most likely are found on the device as well, for the next step
  // to go on from without waiting for the CPU. By default on a GPU.
  void find_tokens_on_device(bool enabled);

  // Graph nodes that the last forward pass evaluated; counted only when asked for, since it walks
  // the graph.
  void count_nodes(bool enabled);
  size_t last_step_nodes();
  // Logits of the last step that drew, evaluated; kept only when asked for, for comparisons.
  void keep_logits(bool enabled);
  std::optional<mx::array> last_logits();

 private:
  // A step under way that was not drawn yet.
  struct Launched {
    mx::array logits;              // [num_samples, vocab_size]; without samples the hidden states
    std::vector<mx::array> nodes;  // others that the step waits for
    bool has_samples;
    std::optional<mx::array> most_likely;  // int32 [num_samples], where the device finds them
    std::shared_ptr<cpu::KernelErrors> kernel_errors;
  };

  void release(const std::vector<RequestKey>& keys);
  // Releases in any case.
  void save_and_release(const std::vector<CachedBlocks>& saves,
                        const std::vector<RequestKey>& ended);
  void clear_prefix_cache();
  void save_prefixes(const std::vector<CachedBlocks>& blocks);
  void leave_memory_to_mlx(const PackedStep& step);  // throws std::runtime_error
  Launched forward(const PackedStep& step, const std::vector<CachedBlocks>& loads);
  mx::array input_ids(const PackedStep& step) const;
  mx::array logits_of(const mx::array& hidden) const;
  mx::array logits_of_rows(const mx::array& hidden, const std::vector<int32_t>& rows) const;
  std::vector<mx::array> score_prompts(const mx::array& hidden, const PackedStep& step) const;
  Launched& launched();

  std::filesystem::path model_dir_;
  ModelConfig config_;
  mx::Dtype dtype_;
  std::unique_ptr<Model> model_;  // null while the weights are unloaded
  size_t weight_bytes_ = 0;
  std::optional<KVCacheSpec> kv_cache_spec_;
  std::unique_ptr<KVCache> cache_;
  ContiguousKVCache* contiguous_cache_ = nullptr;  // cache_, while there is a prefix cache
  std::unique_ptr<PrefixCache> prefix_cache_;
  std::optional<Launched> launched_;
  std::exception_ptr launch_error_;
  int launches_until_clear_ = 0;  // of what MLX keeps; 0: none
  bool loads_under_way_ = false;  // perhaps
  bool find_tokens_on_device_;
  // int32, what the last draw_tokens returned, or the same found on the device
  std::optional<mx::array> last_tokens_;
  bool last_tokens_on_device_ = false;
  size_t tokens_of_last_step_ = 0;
  bool count_nodes_ = false;
  size_t last_step_nodes_ = 0;
  size_t bytes_of_mlx_ = 0;  // that ops of the last step take without asking
  bool keep_logits_ = false;
  std::optional<mx::array> last_logits_;
  TaskThread thread_;  // last: its tasks use the others
};

}  // namespace vllm_metal
