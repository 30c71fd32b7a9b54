#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# vLLM's own client, `vllm bench serve`, against `vllm serve` at concurrency 1, 8 and 32: random
# prompts of 128 tokens, answers of 128. No network is used.
# Usage: bench_serve.sh [model directory, else the default model] [more arguments of vllm serve]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  sed -n 's/^# \{0,1\}//; 3,5p' "$0"
  exit 0
fi

bin=.venv/bin
model=${1:-$("$bin/python" -m vllm_metal.default_model | tail -n 1)}
shift || true
results=build/bench/vllm_bench_serve
mkdir -p "$results"
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_OFFLINE=1
unset VLLM_TARGET_DEVICE

port=$("$bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$bin/vllm" serve "$model" --host 127.0.0.1 --port "$port" --served-model-name model \
  --max-model-len 1024 --kv-cache-memory-bytes 1G "$@" >"$results/server.log" 2>&1 &
server=$!
trap 'kill -INT "$server" 2>/dev/null || true; wait "$server" || true' EXIT

until curl --silent --fail --output /dev/null "http://127.0.0.1:$port/health"; do
  kill -0 "$server" 2>/dev/null || { tail -n 40 "$results/server.log" >&2; exit 1; }
  sleep 0.5
done

for concurrency in 1 8 32; do
  "$bin/vllm" bench serve --backend vllm --base-url "http://127.0.0.1:$port" --model model \
    --tokenizer "$model" --dataset-name random --random-input-len 128 --random-output-len 128 \
    --ignore-eos --temperature 0 --max-concurrency "$concurrency" \
    --num-prompts $((4 + 2 * concurrency)) --num-warmups 2 \
    --save-result --result-dir "$results" --result-filename "concurrency_$concurrency.json"
done
