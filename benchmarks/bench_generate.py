# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode speed of one request on the default model: ours and mlx-lm in the same run.

Runs alternate; medians and ratios are printed, and written as JSON with --json. Processor,
versions and lengths are part of the result, since none of it means anything without them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from machine import num_cores, processor

Speeds = dict[str, float]  # "prefill" and "decode", tokens/s


def prompt_tokens(length: int) -> list[int]:
    """Any ids do: the work does not depend on them."""
    return [1000 + 17 * i % 40000 for i in range(length)]


def ours(model_dir: Path, prompt_len: int, new_tokens: int) -> Callable[[], Speeds]:
    from vllm_metal import _core

    config = json.loads((model_dir / "config.json").read_text())
    runner = _core.ModelRunner(
        str(model_dir), json.dumps(config), config.get("dtype") or config["torch_dtype"]
    )
    runner.initialize_kv_cache(prompt_len + new_tokens + 16, 16)
    greedy = _core.SamplingParams(temperature=0.0)

    def step(computed: int, count: int, **changes: list) -> None:
        arguments = {"finished": [], "preempted": [], "new_requests": [], "updates": []} | changes
        runner.step(**arguments, scheduled=[("r", computed, count)])

    def run() -> Speeds:
        start = time.perf_counter()
        step(
            0,
            prompt_len,
            finished=["r"],
            new_requests=[("r", prompt_tokens(prompt_len), 0, greedy)],
        )
        first = time.perf_counter()
        for i in range(new_tokens - 1):
            step(prompt_len + i, 1)
        end = time.perf_counter()
        return {"prefill": prompt_len / (first - start), "decode": (new_tokens - 1) / (end - first)}

    return run


def mlx_lm(model_dir: Path, prompt_len: int, new_tokens: int) -> Callable[[], Speeds]:
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    model, _ = load(str(model_dir))

    def run() -> Speeds:
        start = time.perf_counter()
        tokens = generate_step(mx.array(prompt_tokens(prompt_len)), model, max_tokens=new_tokens)
        next(tokens)
        first = time.perf_counter()
        for _ in tokens:
            pass
        end = time.perf_counter()
        return {"prefill": prompt_len / (first - start), "decode": (new_tokens - 1) / (end - first)}

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, help="model directory; the default model unless given"
    )
    parser.add_argument("--prompt-len", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument(
        "--runs", type=int, default=5, help="counted runs of ours, after one warm-up"
    )
    parser.add_argument(
        "--peer-runs", type=int, default=1, help="counted runs of mlx-lm, which is slow on a CPU"
    )
    parser.add_argument("--json", type=Path, help="write the result there")
    arguments = parser.parse_args()
    if arguments.model is None:
        from vllm_metal.default_model import ensure_default_model

        arguments.model = Path(ensure_default_model())

    lengths = (arguments.prompt_len, arguments.new_tokens)
    engines = {"ours": ours(arguments.model, *lengths), "mlx-lm": mlx_lm(arguments.model, *lengths)}
    engines["ours"]()
    samples: dict[str, list[Speeds]] = {name: [] for name in engines}
    for run in range(max(arguments.runs, arguments.peer_runs)):
        for name, count in (("ours", arguments.runs), ("mlx-lm", arguments.peer_runs)):
            if run < count:
                samples[name].append(engines[name]())

    cores = num_cores()
    result: dict = {
        "processor": processor(),
        "cores": cores,
        "versions": {name: version(name) for name in ("vllm-metal", "mlx", "mlx-lm")},
        "prompt_len": arguments.prompt_len,
        "new_tokens": arguments.new_tokens,
        "runs": {name: len(runs) for name, runs in samples.items()},
    }
    print(f"{result['processor']}, {cores} cores; {result['versions']}")
    print(f"prompt {arguments.prompt_len} tokens, {arguments.new_tokens} new; medians, tokens/s")
    for phase in ("prefill", "decode"):
        medians = {
            name: statistics.median(run[phase] for run in runs) for name, runs in samples.items()
        }
        result[phase] = medians | {"ratio": medians["ours"] / medians["mlx-lm"]}
        print(
            f"{phase:8} ours {medians['ours']:8.1f}   mlx-lm {medians['mlx-lm']:8.1f}   "
            f"ratio {result[phase]['ratio']:.1f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
