// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "runner/step.h"

namespace vllm_metal::test {

// Random steps over given requests: they join one a step, prompts come in chunks mixed with the
// tokens of others, some are left out, preempted and resumed, and ids are used again. Whatever is
// drawn, the steps are the same.
class Traffic {
 public:
  using Tokens = std::vector<int32_t>;

  struct Request {
    Tokens prompt;
    SamplingParams sampling;
  };
  struct Options {
    int32_t chunk;
    size_t num_tokens;    // of each answer
    size_t num_ids = 6;   // that many live at a time
    bool as_new = false;  // preempted requests come back as new ones
  };

  Traffic(std::vector<Request> requests, const Options& options)
      : requests_(std::move(requests)), options_(options), answers_(requests_.size()) {}

  bool done() const { return next_ == requests_.size() && live_.empty(); }
  // Whether next() may preempt, so that the tokens of all steps before must have been taken.
  bool may_preempt() const { return step_ % 7 == 6; }

  StepInput next() {
    ++step_;
    rows_.clear();
    StepInput input;
    if (step_ % 7 == 0) preempt(input);
    end(input);
    join();
    for (Live& live : live_)
      if (random_() % 5 != 0) schedule(live, input);
    return input;
  }

  // Which request each scheduled one of the last step is.
  const std::vector<size_t>& rows() const { return rows_; }

  void take(const std::vector<size_t>& rows, const StepOutput& output) {
    for (size_t i = 0; i < rows.size(); ++i)
      if (output.token_ids[i] >= 0) answers_[rows[i]].push_back(output.token_ids[i]);
  }

  const std::vector<Tokens>& answers() const { return answers_; }
  size_t num_preempted() const { return num_preempted_; }

 private:
  struct Live {
    std::string id;
    size_t request;
    int32_t computed = 0;
    size_t num_drawn = 0;
    bool is_new = true;
    bool is_preempted = false;
    int num_preempted = 0;
  };

  void preempt(StepInput& input) {
    for (Live& live : live_) {
      if (live.is_new || live.is_preempted || live.num_preempted == 2 || random_() % 3 != 0)
        continue;
      live.is_preempted = true;
      ++live.num_preempted;
      live.computed = 0;
      input.preempted.push_back(live.id);
      ++num_preempted_;
    }
  }

  void end(StepInput& input) {
    const auto ended = std::stable_partition(live_.begin(), live_.end(), [&](const Live& live) {
      return live.num_drawn < options_.num_tokens;
    });
    for (auto live = ended; live != live_.end(); ++live) {
      input.finished.push_back(live->id);
      free_ids_.push_back(live->id);
    }
    live_.erase(ended, live_.end());
  }

  void join() {
    if (next_ == requests_.size() || live_.size() == options_.num_ids) return;
    std::string id = std::to_string(next_);
    if (!free_ids_.empty()) {
      id = free_ids_.back();
      free_ids_.pop_back();
    }
    live_.push_back({id, next_++});
  }

  void schedule(Live& live, StepInput& input) {
    const Request& request = requests_[live.request];
    if (live.is_new) {
      input.new_requests.push_back({live.id, request.prompt, request.sampling});
    } else if (live.is_preempted) {
      if (std::find(input.preempted.begin(), input.preempted.end(), live.id) !=
          input.preempted.end())
        return;
      resume(live, request, input);
    }
    live.is_new = live.is_preempted = false;
    const auto known = static_cast<int32_t>(request.prompt.size() + live.num_drawn);
    const int32_t count = std::min(options_.chunk, known - live.computed);
    input.scheduled.push_back({live.id, live.computed, count});
    rows_.push_back(live.request);
    live.computed += count;
    if (live.computed == known) ++live.num_drawn;
  }

  void resume(const Live& live, const Request& request, StepInput& input) const {
    Tokens tokens = request.prompt;
    const Tokens& answer = answers_[live.request];
    tokens.insert(tokens.end(), answer.begin(), answer.end());
    if (options_.as_new) {
      input.new_requests.push_back(
          {live.id, tokens, request.sampling, static_cast<int32_t>(answer.size())});
    } else {
      input.updates.push_back({live.id, tokens});
    }
  }

  std::vector<Request> requests_;
  Options options_;
  std::vector<Tokens> answers_;
  std::vector<Live> live_;
  std::vector<std::string> free_ids_;
  std::vector<size_t> rows_;
  size_t next_ = 0;
  size_t num_preempted_ = 0;
  int step_ = 0;
  std::mt19937 random_{11};
};

}  // namespace vllm_metal::test
