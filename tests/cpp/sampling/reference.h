// SPDX-License-Identifier: Apache-2.0
// The sampler's mathematics in float64, by a full sort: slow and plain.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <vector>

namespace vllm_metal::reference {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Ids by falling logit, lower ids first where logits are equal.
inline std::vector<int> ranking(std::span<const float> logits) {
  std::vector<int> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  return ids;
}

// Softmax of logits / temperature after min-p, top-k (0: all) and top-p, by id; 0 for what is
// dropped.
inline std::vector<double> distribution(std::span<const float> logits, double temperature,
                                        int top_k, double top_p, double min_p = 0) {
  const std::vector<int> ids = ranking(logits);
  const size_t last = top_k > 0 ? std::min<size_t>(top_k, ids.size()) - 1 : ids.size() - 1;
  const double max = logits[ids[0]];
  std::vector<double> weights(logits.size(), 0.0);
  double sum = 0;
  for (int id : ids) {
    const double weight = std::exp((logits[id] - max) / temperature);
    if (logits[id] < logits[ids[last]] || weight < min_p) break;
    weights[id] = weight;
    sum += weights[id];
  }
  double before = 0;
  double kept = 0;
  for (int id : ids) {
    const double weight = weights[id];
    if (before >= top_p * sum) weights[id] = 0;
    before += weight;
    kept += weights[id];
  }
  for (double& weight : weights) weight /= kept;
  return weights;
}

inline std::vector<double> log_softmax(std::span<const float> logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit - max);
  std::vector<double> logprobs;
  for (float logit : logits) logprobs.push_back(logit - max - std::log(sum));
  return logprobs;
}

// Normal logits; where `step` is above 0, multiples of it, so that many are equal.
inline std::vector<float> random_logits(int size, float deviation, uint32_t seed, float step = 0) {
  std::mt19937 engine(seed);
  std::vector<float> logits;
  for (int i = 0; i < size; ++i) {
    // Box-Muller: std::normal_distribution differs between standard libraries.
    const double u = (engine() + 1.0) / 4294967297.0;
    const double v = engine() / 4294967296.0;
    double value = deviation * std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * v);
    if (step > 0) value = step * std::round(value / step);
    logits.push_back(static_cast<float>(value));
  }
  return logits;
}

}  // namespace vllm_metal::reference
