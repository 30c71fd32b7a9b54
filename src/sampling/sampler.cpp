// SPDX-License-Identifier: Apache-2.0
#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "common/text.h"
#include "sampling/copy_logits.h"
#include "sampling/philox.h"
#include "sampling/softmax.h"
#include "sampling/token_filter.h"

namespace vllm_metal {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// Memory that rows and steps reuse.
struct Scratch {
  std::vector<float> edited;  // [vocab_size] after masks, biases and penalties
  std::vector<float>
      scored;            // [vocab_size] what scores are taken of, where it is none of the above
  RowSoftmax softmax;    // of what is drawn from
  size_t max_begin = 0;  // see MaxLogit
  RowSoftmax scored_softmax;
  TokenFilter filter;
  RowScorer scorer;
};

bool wants_scores(const SamplingParams& params) {
  return params.num_logprobs || !params.logprob_token_ids.empty();
}

ScoredTokens scored_tokens(const SamplingParams& params, int vocab_size, int32_t drawn_token) {
  return {.drawn_token = drawn_token,
          .num_most_likely = resolve_num_logprobs(params.num_logprobs.value_or(0), vocab_size),
          .token_ids = params.logprob_token_ids};
}

int logprobs_width(std::span<const SampleRow> rows, int vocab_size) {
  int width = 0;
  for (const SampleRow& row : rows) {
    const SamplingParams& params = row.state->params();
    if (!wants_scores(params)) continue;
    const ScoredTokens tokens = scored_tokens(params, vocab_size, 0);
    const int num_others = tokens.token_ids.empty() ? tokens.num_most_likely
                                                    : static_cast<int>(tokens.token_ids.size());
    width = std::max(width, 1 + num_others);
  }
  return width;
}

// The logits themselves where nothing is to be changed, else a changed copy.
std::span<const float> edit_logits(std::span<const float> logits, const SampleRow& row,
                                   bool mask_stop_tokens, std::vector<float>& copy) {
  if (row.bitmask == nullptr && !row.state->edits_logits()) return logits;
  copy.resize(logits.size());
  if (const auto& allowed = row.state->params().allowed_token_ids) {
    copy_allowed_logits(logits, row.bitmask, *allowed, copy);
  } else {
    copy_logits(logits, row.bitmask, copy);
  }
  row.state->edit(copy, mask_stop_tokens);
  return copy;
}

// Starts the softmax of what is drawn from; false where nothing can be drawn.
bool prepare(std::span<const float> logits, const SampleRow& row, Scratch& scratch) {
  const bool mask_stop_tokens = row.state->masks_stop_tokens();
  auto edited = edit_logits(logits, row, mask_stop_tokens, scratch.edited);
  MaxLogit max = locate_max_logit(edited);
  if (max.value == kMasked && mask_stop_tokens && row.state->params().has_grammar) {
    // The grammar is at its end before min_tokens is: stopping is all that is left.
    edited = edit_logits(logits, row, /*mask_stop_tokens=*/false, scratch.edited);
    max = locate_max_logit(edited);
  }
  scratch.softmax.reset(edited, max.value);
  scratch.max_begin = max.begin;
  return !std::isnan(max.value) && max.value != kMasked;
}

int32_t draw(const SamplingState& state, Scratch& scratch) {
  RowSoftmax& softmax = scratch.softmax;
  const SamplingParams& params = state.params();
  if (params.is_greedy()) {
    const size_t begin = scratch.max_begin;
    return static_cast<int32_t>(begin) + find_logit(softmax.logits().subspan(begin), softmax.max());
  }

  const auto index = static_cast<uint64_t>(state.num_output_tokens());
  const double uniform = uniform_draw(state.seed(), index);
  const FilterParams filter = FilterParams::of(params);
  if (filter.keeps_all(softmax.logits().size())) return softmax.draw(params.temperature, uniform);

  const auto kept = scratch.filter.keep(softmax, filter);
  double sum = 0;
  for (const Candidate& candidate : kept) sum += candidate.weight;
  const auto position = find_cumulative(
      static_cast<int>(kept.size()), [&](int i) { return kept[i].weight; }, uniform * sum);
  return kept[position.index].token_id;
}

// The model's logits, under the grammar's mask only.
RowSoftmax& raw_softmax(std::span<const float> logits, const SampleRow& row, Scratch& scratch) {
  if (!row.state->edits_logits()) return scratch.softmax;
  if (row.bitmask != nullptr) {
    scratch.scored.resize(logits.size());
    copy_logits(logits, row.bitmask, scratch.scored);
    logits = scratch.scored;
  }
  scratch.scored_softmax.reset(logits, max_logit(logits));
  return scratch.scored_softmax;
}

// The logits after temperature and filters, as the last draw applied them.
RowSoftmax& processed_softmax(const SamplingParams& params, Scratch& scratch) {
  const std::span<const float> logits = scratch.softmax.logits();
  const FilterParams filter = FilterParams::of(params);
  const bool keeps_all = filter.keeps_all(logits.size());
  if (params.is_greedy() || (keeps_all && params.temperature == 1)) return scratch.softmax;
  const FilterBorder border = keeps_all ? FilterBorder{} : scratch.filter.border();
  scratch.scored.resize(logits.size());
  scale_kept(logits, border.logit, border.token_id, params.temperature, scratch.scored);
  scratch.scored_softmax.reset(scratch.scored, scratch.softmax.max() / params.temperature);
  return scratch.scored_softmax;
}

bool is_raw(LogprobsMode mode) {
  return mode == LogprobsMode::kRawLogprobs || mode == LogprobsMode::kRawLogits;
}

}  // namespace

SampleOutput make_sample_output(const SamplerConfig& config, std::span<const SampleRow> rows) {
  config.validate();
  for (size_t row = 0; row < rows.size(); ++row) {
    if (rows[row].state == nullptr)
      throw std::invalid_argument(text("[sample] row ", row, " has no sampling state."));
  }
  SampleOutput output;
  output.token_ids.assign(rows.size(), SampleOutput::kFailed);
  output.logprobs = make_logprobs(rows.size(), logprobs_width(rows, config.vocab_size));
  return output;
}

void sample_row(const SamplerConfig& config, std::span<const float> logits, const SampleRow& row,
                size_t index, SampleOutput& output) {
  thread_local Scratch scratch;
  if (!prepare(logits, row, scratch)) return;
  const int32_t token = draw(*row.state, scratch);
  const SamplingParams& params = row.state->params();
  if (wants_scores(params)) {
    RowSoftmax& softmax = is_raw(config.logprobs_mode) ? raw_softmax(logits, row, scratch)
                                                       : processed_softmax(params, scratch);
    if (std::isnan(softmax.max())) return;
    scratch.scorer.score(softmax, config.logprobs_mode,
                         scored_tokens(params, config.vocab_size, token), index, output.logprobs);
  }
  output.token_ids[index] = token;
  row.state->append(token);
}

SampleOutput sample(const SamplerConfig& config, std::span<const float> logits,
                    std::span<const SampleRow> rows) {
  SampleOutput output = make_sample_output(config, rows);
  const auto vocab_size = static_cast<size_t>(config.vocab_size);
  if (logits.size() != rows.size() * vocab_size) {
    throw std::invalid_argument(text("[sample] ", rows.size(), " rows with a vocabulary of ",
                                     vocab_size, " need ", rows.size() * vocab_size,
                                     " logits but got ", logits.size(), "."));
  }
  for (size_t row = 0; row < rows.size(); ++row)
    sample_row(config, logits.subspan(row * vocab_size, vocab_size), rows[row], row, output);
  return output;
}

}  // namespace vllm_metal
