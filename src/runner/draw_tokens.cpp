// SPDX-License-Identifier: Apache-2.0
#include "runner/draw_tokens.h"

#include <mlx/scheduler.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "common/mlx_buffer.h"
#include "common/text.h"
#include "kernels/cpu/cpu_primitive.h"
#include "kernels/cpu/parallel_for.h"

namespace vllm_metal {

namespace {

double milliseconds(DrawTask::Clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

// Throws what a kernel of the step threw: one of ours, or of MLX's, which notes those of all steps.
void check_kernels(const DrawTask& task, mx::Stream stream) {
  try {
    if (task.kernel_errors != nullptr) task.kernel_errors->rethrow();
    mx::scheduler::check_error(stream);
  } catch (const std::exception& error) {
    throw std::runtime_error(text("[runner] a kernel of the step failed: ", error.what()));
  }
}

void draw(DrawTask& task, const float* logits, int64_t stride) {
  const auto vocab_size = static_cast<size_t>(task.config->vocab_size);
  const size_t bitmask_words = (vocab_size + 31) / 32;
  std::vector<SampleRow> rows;
  rows.reserve(task.rows.size());
  for (const auto& row : task.rows) {
    const int32_t* bitmask =
        row.bitmask_row < 0
            ? nullptr
            : task.bitmask.data() + static_cast<size_t>(row.bitmask_row) * bitmask_words;
    rows.push_back({row.state.get(), bitmask});
  }
  SampleOutput drawn = make_sample_output(*task.config, rows);
  cpu::parallel_for(static_cast<int64_t>(rows.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto index = static_cast<size_t>(i);
      if (const auto& given = task.rows[index].given_token) {
        drawn.token_ids[index] = *given;
        rows[index].state->append(*given);
      } else {
        sample_row(*task.config, {logits + i * stride, vocab_size}, rows[index], index, drawn);
      }
    }
  });
  for (size_t i = 0; i < rows.size(); ++i)
    task.output->token_ids[task.rows[i].scheduled_index] = drawn.token_ids[i];
  task.output->logprobs = std::move(drawn.logprobs);
}

class DrawTokens : public cpu::CpuPrimitive {
 public:
  explicit DrawTokens(std::shared_ptr<DrawTask> task) : task_(std::move(task)) {}

  const char* name() const override { return "DrawTokens"; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    mx::array& tokens = outputs.front();
    allocate_output(tokens);
    const std::span<int32_t> token_ids(tokens.data<int32_t>(), tokens.size());
    if (task_->rows.empty()) {
      dispatch([task = task_, stream = stream(), token_ids] {
        task->run(stream, nullptr, 0, token_ids);
      });
      return;
    }
    const mx::array logits = with_even_rows(inputs.front());
    dispatch([task = task_, stream = stream(), token_ids, logits = weak_handle(logits)] {
      task->run(stream, logits.data<float>(), cpu::rows_of(logits).stride, token_ids);
    });
  }

 private:
  std::shared_ptr<DrawTask> task_;
};

class ScorePrompt : public cpu::CpuPrimitive {
 public:
  ScorePrompt(std::shared_ptr<PromptLogprobs> scores, int64_t first_position)
      : scores_(std::move(scores)), first_position_(first_position) {}

  const char* name() const override { return "ScorePrompt"; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    allocate_output(outputs.front());
    const mx::array logits = with_even_rows(inputs.front());
    dispatch([scores = scores_, first = first_position_, logits = weak_handle(logits),
              ready = outputs.front().data<int32_t>()] {
      const auto* data = logits.data<float>();
      const int64_t stride = cpu::rows_of(logits).stride;
      const auto vocab_size = static_cast<size_t>(logits.shape(1));
      cpu::parallel_for(logits.shape(0), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          scores->add(first + i, {data + i * stride, vocab_size});
      });
      *ready = 0;
    });
  }

 private:
  std::shared_ptr<PromptLogprobs> scores_;
  int64_t first_position_;
};

}  // namespace

void DrawTask::run(mx::Stream stream, const float* logits, int64_t row_stride,
                   std::span<int32_t> tokens) {
  const auto start = Clock::now();
  std::fill(tokens.begin(), tokens.end(), 0);
  try {
    check_kernels(*this, stream);
    if (!rows.empty()) draw(*this, logits, row_stride);
    for (size_t i = 0; i < rows.size(); ++i)
      tokens[i] = std::max(output->token_ids[rows[i].scheduled_index], 0);
    const auto end = Clock::now();
    output->idle_ms = milliseconds(std::max(launched - *last_drawn, Clock::duration::zero()));
    output->forward_ms = milliseconds(start - std::max(launched, *last_drawn));
    output->sampling_ms = milliseconds(end - start);
    *last_drawn = end;
    done.set_value(output);
  } catch (...) {
    fail(std::current_exception());
  }
}

void DrawTask::fail(std::exception_ptr error) {
  *last_drawn = Clock::now();
  done.set_exception(std::move(error));
}

mx::array draw_tokens(const mx::array& logits, std::vector<mx::array> after,
                      std::shared_ptr<DrawTask> task) {
  const int num_tokens = std::max(static_cast<int>(task->rows.size()), 1);
  after.insert(after.begin(), logits);
  return mx::array({num_tokens}, mx::int32, std::make_shared<DrawTokens>(std::move(task)),
                   std::move(after));
}

mx::array score_prompt(const mx::array& logits, std::shared_ptr<PromptLogprobs> scores,
                       int64_t first_position) {
  return mx::array({1}, mx::int32, std::make_shared<ScorePrompt>(std::move(scores), first_position),
                   {logits});
}

}  // namespace vllm_metal
