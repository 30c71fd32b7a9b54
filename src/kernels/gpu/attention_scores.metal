// SPDX-License-Identifier: Apache-2.0
// What a query sees, and the softmax. Scores are in units of log 2, so that exp2 serves; "no
// score" is finite, so that the fast exp2 need not know infinities.

enum : int { kKeysAtOnce = 4 };  // keys whose rows are under way together in attention_decode

#define LOG2_E 1.44269504088896340736f
#define NO_SCORE -1e30f

// One request of the batch.
struct RequestView {
  DEVICE_POINTER(const int) table;  // [blocks_per_request]
  int first_token;                  // row of its first query
  int history;                      // cached tokens before its first query
};

FUNC RequestView request_view(int request, DEVICE_POINTER(const int) block_tables,
                              DEVICE_POINTER(const int) query_starts,
                              DEVICE_POINTER(const int) context_lens,
                              ARGUMENTS_REF(AttentionArguments) arguments) {
  RequestView view;
  view.table = block_tables + size_t(request) * size_t(arguments.blocks_per_request);
  view.first_token = query_starts[request];
  view.history = context_lens[request] - (query_starts[request + 1] - view.first_token);
  return view;
}

// A query sees the keys [first, end).
FUNC int first_visible_key(int end, int window) { return window > 0 ? max(0, end - window) : 0; }

// What a query is multiplied by before its products with keys are taken.
FUNC float query_scale(ARGUMENTS_REF(AttentionArguments) arguments) {
  return arguments.softcap > 0.0f ? arguments.scale / arguments.softcap : arguments.scale * LOG2_E;
}

FUNC float score_of(float product, float softcap) {
  return softcap > 0.0f ? softcap * LOG2_E * accurate_tanh(product) : product;
}

// The state of an online softmax: sum is that of exp2(score - highest).
struct SoftmaxState {
  float highest;
  float sum;
};

// Takes the sink of a head in, and returns what sums of weighted values are multiplied by.
FUNC float final_scale(SoftmaxState state, DEVICE_POINTER(const float) sinks, int head,
                       ARGUMENTS_REF(AttentionArguments) arguments) {
  if (arguments.has_sinks == 0) return 1.0f / state.sum;
  const float sink = sinks[head] * LOG2_E;
  const float highest = max(state.highest, sink);
  const float correction = fast_exp2(state.highest - highest);
  return correction / (state.sum * correction + fast_exp2(sink - highest));
}
